package sqlite_test

import (
	"testing"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/sqlite"
	"github.com/storacha/w3filecoin/store/storetest"
)

func TestEngine(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		clock := storetest.NewClock()
		dir := t.TempDir()
		return storetest.Harness{Clock: clock, Open: func(t testing.TB) store.Driver {
			t.Helper()
			e, err := sqlite.Open(dir, sqlite.Options{Now: clock.Now})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}}
	})
}
