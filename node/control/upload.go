package control

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"github.com/cairnfs/cairn/cas"
)

// An upload lasts as long as the request that began it: the answer is a line with its
// id, and then nothing until either side ends it. So a client that is killed leaves
// nothing behind.

// maxUploads bounds the uploads of all clients.
const maxUploads = 256

// uploads are those of a server.
type uploads struct {
	mu     sync.Mutex
	open   map[string]Upload
	closed chan struct{}
	once   sync.Once
}

func (u *uploads) init() {
	u.open, u.closed = make(map[string]Upload), make(chan struct{})
}

// close ends all requests that keep an upload open.
func (u *uploads) close() { u.once.Do(func() { close(u.closed) }) }

// get returns the upload that a request names.
func (u *uploads) get(r *http.Request) (Upload, error) {
	id := r.URL.Query().Get("upload")
	u.mu.Lock()
	defer u.mu.Unlock()
	up := u.open[id]
	if up == nil {
		return nil, fmt.Errorf("%w: no upload %.40q", ErrProtocol, id)
	}
	return up, nil
}

// upload begins one and keeps it until the client is gone.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) error {
	up, err := s.node.Upload(r.Context())
	if err != nil {
		return err
	}
	defer up.Close()
	id, u := rand.Text(), &s.uploads
	u.mu.Lock()
	full := len(u.open) >= maxUploads
	if !full {
		u.open[id] = up
	}
	u.mu.Unlock()
	if full {
		return fmt.Errorf("%w: %d uploads are under way", ErrUnavailable, maxUploads)
	}
	defer func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.open, id)
	}()
	if err := sendJSON(w, id); err != nil {
		return nil // the client is gone
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return nil
	}
	select {
	case <-r.Context().Done():
	case <-u.closed:
	}
	return nil
}

// clientUpload is an upload of a client.
type clientUpload struct {
	c    *Client
	id   string
	stop context.CancelFunc
	body interface{ Close() error }
}

// Upload asks the node to begin one.
func (c *Client) Upload(ctx context.Context) (Upload, error) { return c.newUpload(ctx) }

func (c *Client) newUpload(ctx context.Context) (*clientUpload, error) {
	lasts, stop := context.WithCancel(context.WithoutCancel(ctx))
	resp, err := c.do(lasts, http.MethodGet, "upload", 0, nil)
	if err != nil {
		stop()
		return nil, err
	}
	u := &clientUpload{c: c, stop: stop, body: resp.Body}
	line, err := bufio.NewReader(resp.Body).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &u.id)
	}
	if err != nil {
		_ = u.Close()
		return nil, unavailable(ctx, err)
	}
	return u, nil
}

// Close ends the upload.
func (u *clientUpload) Close() error {
	u.stop()
	return u.body.Close()
}

func (u *clientUpload) call(name string) string { return name + "?upload=" + url.QueryEscape(u.id) }

// Put sends the node the blocks that it does not have, up to 4 MiB at a time.
func (u *clientUpload) Put(ctx context.Context, blocks ...cas.Block) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for len(blocks) > 0 {
		n, size := 0, 0
		for n < len(blocks) && n < maxHas {
			if size += putHeader + len(blocks[n].Data()); size > maxPut {
				break
			}
			n++
		}
		if err := u.putBatch(ctx, blocks[:n]); err != nil {
			return err
		}
		blocks = blocks[n:]
	}
	return nil
}

// Renew asks the node.
func (u *clientUpload) Renew(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return u.c.askEach(ctx, u.call("blocks/renew"), cids)
}

// Pin asks the node, 500 pins at a time: of more than that, some may have been made
// when it fails.
func (u *clientUpload) Pin(ctx context.Context, pins ...Pin) error {
	return inBatches(pins, func(pins []Pin) error { return u.c.postJSON(ctx, u.call("pins"), pins) })
}

// own returns the upload that Put and Pin of the client belong to, which lasts until
// Close.
func (c *Client) own(ctx context.Context) (*clientUpload, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.upload != nil {
		return c.upload, nil
	}
	u, err := c.newUpload(ctx)
	c.upload = u
	return u, err
}
