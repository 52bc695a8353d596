package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
)

// Limits of a server, each per process.
const (
	// maxPutting bounds the put bodies held in memory, so the memory for them
	// is at most maxPutting * maxPut = 32 MiB. Further puts wait.
	maxPutting = 8
	// bodyTime is how long a request may take to arrive after its header, so
	// that a client that stops cannot keep a place for long.
	bodyTime   = 30 * time.Second
	headerTime = 10 * time.Second
	idleTime   = 2 * time.Minute
	maxHeader  = 16 << 10
)

// Server answers clients with what a Node does.
type Server struct {
	node    Node
	logger  *slog.Logger
	http    http.Server
	cancel  context.CancelFunc
	putting chan []byte // free buffers of maxPut bytes, nil until first used
	blocks  sync.Pool   // of *[]byte, cas.MaxBlockSize long
	uploads uploads

	gate   sync.RWMutex // held for reading while the node is being called
	closed bool
}

// NewServer returns a server for node, which it does not own. A nil logger is
// slog.Default.
func NewServer(node Node, logger *slog.Logger) *Server {
	if logger == nil {
		logger = slog.Default()
	}
	s := &Server{node: node, logger: logger, putting: make(chan []byte, maxPutting)}
	for range maxPutting {
		s.putting <- nil
	}
	s.uploads.init()
	s.blocks.New = func() any { b := make([]byte, cas.MaxBlockSize); return &b }
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.http = http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	return s
}

// Serve answers on l until Close, then returns nil. It closes l.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close stops accepting and lets requests under way finish until ctx ends; then
// they are cancelled and cut off, which is an error. After Close the node is not
// called any more.
func (s *Server) Close(ctx context.Context) error {
	s.uploads.close()
	err := s.http.Shutdown(ctx)
	s.cancel()
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	s.closed = true
	return err
}

// handler does one call. An error that it returns before it has written
// anything is sent to the client.
type handler func(w http.ResponseWriter, r *http.Request) error

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	routes := map[string]handler{
		"GET /v1/hello":         s.hello,
		"GET /v1/upload":        s.upload,
		"POST /v1/gc":           s.collect,
		"POST /v1/blocks/renew": s.renew,
		"GET /v1/status":        s.status,
		"GET /v1/pins":          s.pins,
		"POST /v1/pins":         s.pin,
		"POST /v1/unpin":        s.unpin,
		"POST /v1/sync":         s.sync,
		"POST /v1/check":        s.check,
		"POST /v1/blocks/get":   s.get,
		"POST /v1/blocks/has":   s.has,
		"POST /v1/blocks/put":   s.put,
	}
	maps.Copy(routes, s.clusterRoutes())
	for pattern, h := range routes {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.call(h, w, r) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		sendError(w, fmt.Errorf("%w: no call %s %s", ErrProtocol, r.Method, r.URL.Path))
	})
	return mux
}

func (s *Server) call(h handler, w http.ResponseWriter, r *http.Request) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.closed {
		sendError(w, ErrUnavailable)
		return
	}
	if err := h(w, r); err != nil && r.Context().Err() == nil {
		s.logger.Debug("control call failed", "call", r.URL.Path, "err", err)
		sendError(w, err)
	}
}

func sendError(w http.ResponseWriter, err error) {
	wire, status := toWire(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(wire)
}

func sendJSON(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(v)
}

// readBody reads the whole body, of a length stated in advance and at most
// limit, into buf if that is large enough.
func readBody(w http.ResponseWriter, r *http.Request, buf []byte, limit int) ([]byte, error) {
	n := r.ContentLength
	if n < 0 || n > int64(limit) {
		return nil, fmt.Errorf("%w: body of %d bytes", ErrProtocol, n)
	}
	if n > int64(cap(buf)) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	conn := http.NewResponseController(w)
	if err := conn.SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r.Body, buf); err != nil {
		return nil, err
	}
	// From here on the server reads only to notice that the client has gone.
	return buf, conn.SetReadDeadline(time.Time{})
}

func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := readBody(w, r, nil, maxJSON)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %v", ErrProtocol, err)
	}
	return nil
}

func (s *Server) hello(w http.ResponseWriter, _ *http.Request) error {
	return sendJSON(w, hello{Protocol: protocolVersion, Chunker: s.node.Format().Chunker.Params()})
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) error {
	status, err := s.node.Status(r.Context())
	if err != nil {
		return err
	}
	return sendJSON(w, status)
}

func (s *Server) sync(_ http.ResponseWriter, r *http.Request) error {
	return s.node.Sync(r.Context())
}

func (s *Server) pin(w http.ResponseWriter, r *http.Request) error {
	var pins []Pin
	if err := readJSON(w, r, &pins); err != nil {
		return err
	}
	u, err := s.uploads.get(r)
	if err != nil {
		return err
	}
	return u.Pin(r.Context(), pins...)
}

func (s *Server) unpin(w http.ResponseWriter, r *http.Request) error {
	var cids []cas.CID
	if err := readJSON(w, r, &cids); err != nil {
		return err
	}
	return s.node.Unpin(r.Context(), cids...)
}

// listLine is one line of a list: an item, or the end. A list without an end
// was cut off.
type listLine[T any] struct {
	Item *T         `json:"item,omitempty"`
	Err  *wireError `json:"error,omitempty"`
	End  bool       `json:"end,omitempty"`
}

// sendList sends what each calls its argument with.
func sendList[T any](w http.ResponseWriter, each func(func(T) error) error) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	end := listLine[T]{End: true}
	if err := each(func(item T) error { return out.Encode(listLine[T]{Item: &item}) }); err != nil {
		wire, _ := toWire(err)
		end.Err = &wire
	}
	return out.Encode(end)
}

func (s *Server) pins(w http.ResponseWriter, r *http.Request) error {
	return sendList(w, func(fn func(Pin) error) error { return s.node.Pins(r.Context(), fn) })
}

// damage is one finding of a check.
type damage struct {
	CID cas.CID   `json:"cid"`
	Err wireError `json:"error"`
}

func (s *Server) check(w http.ResponseWriter, r *http.Request) error {
	return sendList(w, func(fn func(damage) error) error {
		return s.node.Check(r.Context(), func(c cas.CID, err error) error {
			wire, _ := toWire(err)
			return fn(damage{c, wire})
		})
	})
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(w, r, nil, maxGet*cas.CIDSize)
	if err != nil {
		return err
	}
	cids, err := parseCIDs(body, maxGet)
	if err != nil {
		return err
	}
	buf := s.blocks.Get().(*[]byte)
	defer s.blocks.Put(buf)
	if far, ok := s.node.(manifest.Prefetcher); ok && len(cids) > 1 && far.Ahead() > 0 {
		far.Prefetch(r.Context(), cids)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	for _, c := range cids {
		tag, data := tagBlock, []byte(nil)
		b, err := s.node.Get(r.Context(), c, *buf)
		if data = b.Data(); err != nil {
			wire, _ := toWire(err)
			if tag = tagError; data == nil {
				if data, err = json.Marshal(wire); err != nil {
					return err
				}
			}
		}
		if len(cids) == 1 {
			w.Header().Set("Content-Length", strconv.Itoa(getHeader+len(data)))
		}
		if err := writeBlock(w, tag, data); err != nil {
			return nil // the client is gone
		}
	}
	return nil
}

func (s *Server) collect(w http.ResponseWriter, r *http.Request) error {
	var o CollectOptions
	if err := readJSON(w, r, &o); err != nil {
		return err
	}
	all, err := s.node.Collect(r.Context(), o)
	if err != nil {
		return err
	}
	return sendJSON(w, all)
}

func (s *Server) has(w http.ResponseWriter, r *http.Request) error {
	return ask(w, r, s.node.Has)
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request) error {
	u, err := s.uploads.get(r)
	if err != nil {
		return err
	}
	return ask(w, r, u.Renew)
}

// ask answers what ask says of the CIDs in the body.
func ask(w http.ResponseWriter, r *http.Request, ask func(context.Context, ...cas.CID) ([]bool, error)) error {
	body, err := readBody(w, r, nil, maxHas*cas.CIDSize)
	if err != nil {
		return err
	}
	cids, err := parseCIDs(body, maxHas)
	if err != nil {
		return err
	}
	has, err := ask(r.Context(), cids...)
	if err != nil {
		return err
	}
	answer := make([]byte, len(has))
	for i, h := range has {
		if h {
			answer[i] = 1
		}
	}
	_, _ = w.Write(answer) // fails when the client is gone
	return nil
}

func (s *Server) put(w http.ResponseWriter, r *http.Request) error {
	var buf []byte
	select {
	case buf = <-s.putting:
	case <-r.Context().Done():
		return r.Context().Err()
	}
	if buf == nil {
		buf = make([]byte, maxPut)
	}
	defer func() { s.putting <- buf }()
	body, err := readBody(w, r, buf, maxPut)
	if err != nil {
		return err
	}
	blocks, err := parsePut(body)
	if err != nil {
		return err
	}
	u, err := s.uploads.get(r)
	if err != nil {
		return err
	}
	return u.Put(r.Context(), blocks...)
}
