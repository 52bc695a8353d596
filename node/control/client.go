package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/chunker"
)

// helloTime is how long a node may take to say that it is there.
const helloTime = 3 * time.Second

// maxIdle is how many connections a client keeps open between requests.
const maxIdle = 16

// Client is the Node of another process.
type Client struct {
	http   http.Client
	format manifest.Format
	gets   gets

	mu     sync.Mutex
	upload *clientUpload // that Put and Pin belong to, nil before the first of them
}

// Dial connects to the process that has the store in the data directory dir
// open. It fails with ErrUnavailable if no process answers within 3 seconds, and
// with ErrProtocol if another version of the program does.
func Dial(ctx context.Context, dir string) (*Client, error) {
	c := &Client{http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return connect(ctx, dir)
		},
		MaxIdleConns:        maxIdle,
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     idleTime,
		DisableCompression:  true,
		WriteBufferSize:     64 << 10,
	}}}
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	var h hello
	if err := c.getJSON(ctx, "hello", &h); err != nil {
		return nil, err
	}
	if h.Protocol != protocolVersion {
		return nil, fmt.Errorf("%w: version %d, not %d", ErrProtocol, h.Protocol, protocolVersion)
	}
	chunker, err := chunker.New(h.Chunker)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrProtocol, err)
	}
	c.format = manifest.Format{Chunker: chunker}
	return c, nil
}

// Close gives up the connections; the node goes on.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.upload != nil {
		_ = c.upload.Close() // the node learns of it by the connection
	}
	c.http.CloseIdleConnections()
	return nil
}

// Format returns the format of the node's store.
func (c *Client) Format() manifest.Format { return c.format }

// do sends a request and returns the answer to it, which the caller closes.
func (c *Client) do(ctx context.Context, method, call string, size int64, body func() io.ReadCloser) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://node/v1/"+call, nil)
	if err != nil {
		return nil, err
	}
	if size > 0 {
		req.ContentLength, req.Body = size, body()
		req.GetBody = func() (io.ReadCloser, error) { return body(), nil }
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	return nil, decodeError(data)
}

// unavailable says that err, a failure to talk to the node, is the node's,
// unless the caller has given up.
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// send sends data and returns the answer, which the caller closes.
func (c *Client) send(ctx context.Context, call string, data []byte) (*http.Response, error) {
	return c.do(ctx, http.MethodPost, call, int64(len(data)), func() io.ReadCloser {
		return io.NopCloser(bytes.NewReader(data))
	})
}

// post sends data and reads the answer with read, which may be nil.
func (c *Client) post(ctx context.Context, call string, data []byte, read func(io.Reader) error) error {
	resp, err := c.send(ctx, call, data)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if read == nil {
		return nil
	}
	return read(resp.Body)
}

func (c *Client) postJSON(ctx context.Context, call string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.post(ctx, call, data, nil)
}

func (c *Client) getJSON(ctx context.Context, call string, v any) error {
	resp, err := c.do(ctx, http.MethodGet, call, 0, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxJSON))
	if err != nil {
		return unavailable(ctx, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %v", ErrProtocol, err)
	}
	return nil
}

// Put stores blocks in an upload that lasts until Close.
func (c *Client) Put(ctx context.Context, blocks ...cas.Block) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	u, err := c.own(ctx)
	if err != nil {
		return err
	}
	return u.Put(ctx, blocks...)
}

func (u *clientUpload) putBatch(ctx context.Context, blocks []cas.Block) error {
	cids := make([]cas.CID, len(blocks))
	for i, b := range blocks {
		cids[i] = b.CID()
	}
	has, err := u.Renew(ctx, cids...)
	if err != nil {
		return err
	}
	missing := make([]cas.Block, 0, len(blocks))
	for i, b := range blocks {
		if !has[i] {
			missing = append(missing, b)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	resp, err := u.c.do(ctx, http.MethodPost, u.call("blocks/put"), putSize(missing), func() io.ReadCloser {
		return &putBody{blocks: missing}
	})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Has asks the node.
func (c *Client) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return c.askEach(ctx, "blocks/has", cids)
}

// askEach has the node say something of each CID.
func (c *Client) askEach(ctx context.Context, call string, cids []cas.CID) ([]bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	has := make([]bool, 0, len(cids))
	for len(cids) > 0 {
		n := min(len(cids), maxHas)
		ask := appendCIDs(nil, cids[:n]) // leaves out the zero CID
		answer := make([]byte, len(ask)/cas.CIDSize)
		err := c.post(ctx, call, ask, func(r io.Reader) error {
			if _, err := io.ReadFull(r, answer); err != nil {
				return unavailable(ctx, err)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, cid := range cids[:n] {
			if !cid.Defined() {
				has = append(has, false)
				continue
			}
			has, answer = append(has, answer[0] != 0), answer[1:]
		}
		cids = cids[n:]
	}
	return has, nil
}

// Sync makes the node's blocks durable.
func (c *Client) Sync(ctx context.Context) error { return c.post(ctx, "sync", nil, nil) }

// Status asks the node.
func (c *Client) Status(ctx context.Context) (status Status, err error) {
	err = c.getJSON(ctx, "status", &status)
	return status, err
}

// Pin pins what was put in the upload that Put belongs to.
func (c *Client) Pin(ctx context.Context, pins ...Pin) error {
	u, err := c.own(ctx)
	if err != nil {
		return err
	}
	return u.Pin(ctx, pins...)
}

// Collect has the node run a round.
func (c *Client) Collect(ctx context.Context, o CollectOptions) (all Collected, err error) {
	data, err := json.Marshal(o)
	if err != nil {
		return all, err
	}
	err = c.post(ctx, "gc", data, func(r io.Reader) error { return json.NewDecoder(io.LimitReader(r, maxJSON)).Decode(&all) })
	return all, err
}

// Unpin asks the node, 500 pins at a time: of more than that, some may have been
// removed when it fails.
func (c *Client) Unpin(ctx context.Context, cids ...cas.CID) error {
	return inBatches(cids, func(cids []cas.CID) error { return c.postJSON(ctx, "unpin", cids) })
}

func inBatches[T any](items []T, do func([]T) error) error {
	for len(items) > 0 {
		n := min(len(items), maxPins)
		if err := do(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// Pins asks the node.
func (c *Client) Pins(ctx context.Context, fn func(Pin) error) error {
	resp, err := c.do(ctx, http.MethodGet, "pins", 0, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return readList(ctx, resp.Body, fn)
}

// Check has the node check itself.
func (c *Client) Check(ctx context.Context, bad func(cas.CID, error) error) error {
	return c.post(ctx, "check", nil, func(r io.Reader) error {
		return readList(ctx, r, func(d damage) error { return bad(d.CID, d.Err.err()) })
	})
}

// readList calls fn for each item of a list.
func readList[T any](ctx context.Context, r io.Reader, fn func(T) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxJSON)
	for lines.Scan() {
		var line listLine[T]
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("%w: %v", ErrProtocol, err)
		}
		switch {
		case line.Err != nil:
			return line.Err.err()
		case line.End:
			return nil
		case line.Item != nil:
			if err := fn(*line.Item); err != nil {
				return err
			}
		}
	}
	return unavailable(ctx, errors.Join(lines.Err(), io.ErrUnexpectedEOF))
}
