package piece_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/storacha/w3filecoin/piece"
)

func Example() {
	content := strings.NewReader(strings.Repeat("a piece of content\n", 50))

	sums, err := piece.HashReader(context.Background(), content)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sums.Piece)
	fmt.Println("payload", sums.Piece.PayloadSize(), "padded", sums.Piece.PaddedSize())
	fmt.Println("v1", sums.Piece.V1())

	link, err := piece.Parse(sums.Piece.String())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("same piece:", link == sums.Piece)
	// Output:
	// bafkzcibciicswr7jgmqqmn6h7wc3lq56docisxgu36vsutiajntj6s6457qqupi
	// payload 950 padded 1024
	// v1 baga6ea4seaqcwr7jgmqqmn6h7wc3lq56docisxgu36vsutiajntj6s6457qqupi
	// same piece: true
}

func ExampleHasher() {
	h := piece.NewHasher(piece.WithWorkers(2))
	for line := range strings.Lines("one\ntwo\nthree\n") {
		if _, err := h.Write([]byte(line)); err != nil {
			log.Fatal(err)
		}
	}
	link, err := h.Sum()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(h.Size(), "bytes:", link)
	// Output: 14 bytes: bafkzcibcoebb3l5xihmhcjcmbe7ydznn2srlhay6arp7clkjbnruqswwnorgapa
}
