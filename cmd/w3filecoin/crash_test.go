package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestCrash kills a network, all roles in one process, at moments left to chance while offers come in, W3FILECOIN_CRASHES times, and starts it
// again. What was acknowledged is known after each start and ends well; no receipt ever changes; nothing is done twice.
func TestCrash(t *testing.T) {
	aside(t)
	few := uint64(3)
	if testing.Short() {
		few = 1
	}
	crashes := int(number(t, "W3FILECOIN_CRASHES", few))
	seed := seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	began := time.Now()
	n := newTogether(t)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	enough := make(chan struct{})
	var offerers sync.WaitGroup
	for i := range 4 {
		offerers.Go(func() { offerAll(ctx, t, n, rand.New(rand.NewPCG(seed, uint64(i+1))), enough) })
	}
	defer offerers.Wait()
	defer stop()

	kills := 0
	for kills < crashes {
		sometime(t, r, 1200*time.Millisecond)
		n.kill()
		n.start()
		kills++
		if kills < crashes && r.IntN(4) == 0 {
			// Again, while it is starting or recovering.
			sometime(t, r, 200*time.Millisecond)
			n.kill()
			n.start()
			kills++
		}
		n.ready()
		if err := n.check(t.Context(), r, 10); err != nil {
			t.Fatalf("after crash %d: %v", kills, err)
		}
	}
	close(enough)
	offerers.Wait()
	n.settle(t, r, patience)
	n.concluded(t, n.chainFile())
	n.stop()
	n.log.clean(t)
	t.Logf("%d crashes, %d pieces, %s", kills, len(n.done), time.Since(began).Round(10*time.Millisecond))
}

// offerAll makes up content and offers it, now and then, until it is enough. Whoever is cut off by a crash offers the same again.
func offerAll(ctx context.Context, t *testing.T, n *together, r *rand.Rand, enough <-chan struct{}) {
	for {
		c := newContent(t, r, 0)
		_, err := n.promised(ctx, n.front, c)
		if err == nil && r.IntN(4) == 0 {
			// Once more, and by another agent: the receipt of the first is the same as before, and both share the work.
			if _, err = n.promised(ctx, n.front, c); err == nil {
				_, err = n.promised(ctx, n.other, c)
			}
		}
		if err != nil && ctx.Err() == nil {
			t.Errorf("offering %s: %v", c.cid, err)
		}
		select {
		case <-enough:
			return
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(r.Int64N(int64(400 * time.Millisecond)))):
		}
	}
}

// sometime lets some time pass, as chance will have it: what happens meanwhile is what is tested.
func sometime(t *testing.T, r *rand.Rand, limit time.Duration) {
	select {
	case <-t.Context().Done():
	case <-time.After(time.Duration(r.Int64N(int64(limit)))):
	}
}

// TestDrain asks a process with a long drain to end. It says that it is not ready, and still answers: what it acknowledges then is worked on by whoever comes
// after it.
func TestDrain(t *testing.T) {
	aside(t)
	r := rand.New(rand.NewPCG(seed(t), 0))
	n := newTogether(t)
	n.stop()
	text, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	writeConfig(t, n.config, "drain = \"1h\"\n"+string(text))
	n.start()
	n.ready()
	n.ask()
	eventually(t, "it is not ready any more", func(ctx context.Context) error {
		if err := answers(ctx, n.front.url+"/readyz"); err == nil || !strings.Contains(err.Error(), "503") {
			return fmt.Errorf("/readyz: %v", err)
		}
		return nil
	})
	c := newContent(t, r, 0)
	if _, err := n.invoke(t.Context(), n.front, c); err != nil {
		t.Fatalf("an offer was not taken: %v", err)
	}
	n.kill()

	writeConfig(t, n.config, string(text))
	n.start()
	n.ready()
	if _, err := n.promised(t.Context(), n.front, c); err != nil { // the content itself, which the first offer did not wait for
		t.Fatal(err)
	}
	n.settle(t, r, patience)
	n.concluded(t, n.chainFile())
	n.stop()
	n.log.clean(t)
}
