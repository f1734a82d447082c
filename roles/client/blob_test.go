package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/storacha/w3filecoin/capabilities"
	"github.com/storacha/w3filecoin/capabilities/blob"
	"github.com/storacha/w3filecoin/capabilities/ucan"
	"github.com/storacha/w3filecoin/internal/chaintest"
	"github.com/storacha/w3filecoin/roles/client"
	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/memory"
	"github.com/storacha/w3filecoin/tasks"
	"github.com/storacha/w3filecoin/uploads"
	"github.com/storacha/w3filecoin/wire"
)

// uploadStore is a storefront that takes uploads, and does to its answers what a test wants.
type uploadStore struct {
	*testing.T
	service *uploads.Service
	ledger  *tasks.Ledger
	self    capabilities.Signer
	at      string // address of its HTTP server
	sent    []byte // what it took there
	puts    int
	status  int // of the answer to a PUT; 0: 201
	// reply changes the answer to space/blob/add, receipt that of blob/accept.
	reply, receipt func(*capabilities.Message) *capabilities.Message
}

func newUploadStore(t *testing.T) *uploadStore {
	t.Helper()
	s := &uploadStore{T: t, self: chaintest.Key("storefront")}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.puts++
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPut || r.Header.Get("Authorization") != "Bearer token" {
			t.Errorf("%s with %v: %v", r.Method, r.Header, err)
		}
		if s.status != 0 {
			w.WriteHeader(s.status)
			fmt.Fprint(w, `{"name":"Busy","message":"come back later"}`)
			return
		}
		s.sent = body
		w.WriteHeader(http.StatusCreated)
	}))
	t.Cleanup(server.Close)
	s.at = server.URL
	engine := memory.New(memory.Options{Now: time.Now})
	var err error
	s.service, err = uploads.New(uploads.Deps{Signer: s.self, Store: engine, Keys: chaintest.Keys{}, Bucket: s, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Policy: uploads.Policy{MaxSize: 1000}})
	if err != nil {
		t.Fatal(err)
	}
	s.ledger = tasks.New(engine, chaintest.Keys{}, time.Now, slog.New(slog.DiscardHandler))
	return s
}

func (s *uploadStore) Stat(_ context.Context, d blob.Digest) (uploads.Stored, error) {
	sum, err := multihash.Sum(s.sent, multihash.SHA2_256, -1)
	if err != nil || s.sent == nil || !bytes.Equal(sum, d) {
		return uploads.Stored{}, errors.Join(err, uploads.ErrNoBlob)
	}
	return uploads.Stored{Size: uint64(len(s.sent)), URL: "https://custody.example/x"}, nil
}

func (s *uploadStore) Allocate(_ context.Context, _ blob.Blob, expires time.Time) (blob.Address, error) {
	return blob.Address{URL: s.at + "/blob", Headers: blob.Headers{"authorization": "Bearer token"}, Expires: uint64(expires.Unix())}, nil
}

func (s *uploadStore) Execute(ctx context.Context, m *capabilities.Message) (*capabilities.Message, error) {
	m, err := wire.DecodeMessage(m.Encode(), wire.Limits{})
	if err != nil {
		s.Fatal(err)
	}
	inv := capabilities.Invocation{Task: capabilities.TaskOf(m, m.Invocations()[0]), Message: m}
	if inv.Can() == ucan.ConcludeAbility {
		r, err := s.service.Concluding(s.ledger.Conclude(s.self))(ctx, inv)
		if err != nil {
			return nil, err
		}
		return capabilities.Conclusion(r, inv.Task, capabilities.Effects{}), nil
	}
	_, err = s.service.Methods()[inv.Can()](ctx, inv)
	if f := (*capabilities.Failure)(nil); errors.As(err, &f) {
		r, err := capabilities.IssueFailure(s.self, inv.Link(), f, capabilities.Effects{})
		if err != nil {
			return nil, err
		}
		return capabilities.Conclusion(r, inv.Task, capabilities.Effects{}), nil
	}
	if err != nil {
		return nil, err
	}
	reply, err := s.Receipt(ctx, inv.Link())
	if err == nil && s.reply != nil {
		reply = s.reply(reply)
	}
	return reply, err
}

func (s *uploadStore) Receipt(ctx context.Context, task cid.Cid) (*capabilities.Message, error) {
	rec, err := s.ledger.Get(ctx, task)
	if errors.Is(err, store.ErrNotFound) {
		return nil, capabilities.ErrNoReceipt
	}
	if err != nil {
		return nil, err
	}
	m, err := rec.Decode()
	if t, ok := capabilities.FindTask(m, task); err == nil && ok && t.Can() == blob.AcceptAbility && s.receipt != nil {
		m = s.receipt(m)
	}
	return m, err
}

// put has an agent store some bytes.
func (s *uploadStore) put(ctx context.Context, text, nonce string) (client.Site, error) {
	s.Helper()
	agent := chaintest.Key("agent")
	sum, err := multihash.Sum([]byte(text), multihash.SHA2_256, -1)
	if err != nil {
		s.Fatal(err)
	}
	return client.PutBlob(ctx, client.Upload{
		Conn: s, Agent: agent, Storefront: s.self.DID(), Keys: chaintest.Keys{}, Space: agent.DID().String(), Terms: capabilities.Terms{Nonce: nonce},
		Patience: 30 * time.Millisecond,
	}, blob.Blob{Digest: blob.Digest(sum), Size: uint64(len(text))}, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil })
}

func TestPutBlob(t *testing.T) {
	for _, text := range []string{"some bytes", ""} {
		s := newUploadStore(t)
		site, err := s.put(t.Context(), text, "")
		if err != nil {
			t.Fatal(err)
		}
		if !site.Sent || string(s.sent) != text || len(site.URLs) != 1 || site.URLs[0] != "https://custody.example/x" || site.Claim.Issuer != s.self.DID() {
			t.Errorf("stored %q: %+v", s.sent, site)
		}
		again, err := s.put(t.Context(), text, "again")
		if err != nil || again.Sent || s.puts != 1 {
			t.Errorf("once more: %+v, %v; sent %d times", again, err, s.puts)
		}
	}
	s := newUploadStore(t)
	_, err := s.put(t.Context(), strings.Repeat("x", 1001), "")
	if f := (*capabilities.Failure)(nil); !errors.As(err, &f) || f.Name != "BlobSizeOutsideOfSupportedRange" {
		t.Errorf("too large: %v", err)
	}
}

// without returns the message without the blocks that match.
func without(m *capabilities.Message, task cid.Cid, match func(capabilities.Block) bool) *capabilities.Message {
	var blocks []capabilities.Block
	r := m.Receipt(task)
	for _, b := range m.Blocks() {
		if !match(b) && !b.CID.Equals(r.Link()) {
			blocks = append(blocks, b)
		}
	}
	out := new(capabilities.Message)
	out.AddReceipt(r, blocks...)
	return out
}

func TestPutBlobDoubts(t *testing.T) {
	resigned := func(t *testing.T, m *capabilities.Message) *capabilities.Message {
		first := m.Receipts()[0]
		r, err := wire.SignReceipt(chaintest.Key("stranger"), wire.Receipt{Ran: first.Ran, Out: first.Out, Fork: first.Fork})
		if err != nil {
			t.Fatal(err)
		}
		out := new(capabilities.Message)
		out.AddReceipt(r, m.Blocks()...)
		return out
	}
	for _, tt := range []struct {
		name   string
		tamper func(s *uploadStore)
		says   string
	}{
		{"the receipt is somebody else's", func(s *uploadStore) {
			s.reply = func(m *capabilities.Message) *capabilities.Message { return resigned(s.T, m) }
		}, "not to be believed"},
		{"no effects", func(s *uploadStore) {
			s.reply = func(m *capabilities.Message) *capabilities.Message {
				task := m.Receipts()[0].Ran
				return without(m, task, func(b capabilities.Block) bool { return !b.CID.Equals(task) })
			}
		}, "lacks its effect"},
		{"no allocation", func(s *uploadStore) {
			s.reply = func(m *capabilities.Message) *capabilities.Message {
				return without(m, m.Receipts()[0].Ran, func(b capabilities.Block) bool {
					_, err := wire.DecodeReceipt(b)
					return err == nil
				})
			}
		}, "lacks the receipt"},
		{"the bytes are refused", func(s *uploadStore) { s.status = http.StatusServiceUnavailable }, "come back later"},
		{"it is not accepted", func(s *uploadStore) {
			s.status = http.StatusOK // says so, and has not kept it
		}, "did not accept"},
		{"blob/accept is somebody else's", func(s *uploadStore) {
			s.receipt = func(m *capabilities.Message) *capabilities.Message { return resigned(s.T, m) }
		}, "not to be believed"},
		{"the claim does not come", func(s *uploadStore) {
			s.receipt = func(m *capabilities.Message) *capabilities.Message {
				r := m.Receipts()[0]
				return without(m, r.Ran, func(b capabilities.Block) bool { return b.CID.Equals(r.Fork[0]) })
			}
		}, "did not come"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newUploadStore(t)
			tt.tamper(s)
			if _, err := s.put(t.Context(), "some bytes", ""); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, want that it %q", err, tt.says)
			}
		})
	}
}
