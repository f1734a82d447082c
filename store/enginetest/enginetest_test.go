package enginetest_test

import (
	"testing"

	"github.com/storacha/w3filecoin/store"
	"github.com/storacha/w3filecoin/store/enginetest"
	"github.com/storacha/w3filecoin/store/storetest"
)

func TestMain(m *testing.M) { enginetest.Main(m) }

// TestEngine: what the suites run on is an engine, on the test's clock.
func TestEngine(t *testing.T) {
	if enginetest.Kind() == enginetest.Double {
		t.Skip("its services fail, which the suite of engines does not expect: store/aws/awstest runs it without")
	}
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		clock := storetest.NewClock()
		e := enginetest.New(t, enginetest.Options{Now: clock.Now})
		return storetest.Harness{Clock: clock, Open: func(testing.TB) store.Driver {
			e = e.Reopen()
			return e
		}}
	})
}
