package segment_test

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"strings"

	"github.com/storacha/w3filecoin/piece"
	"github.com/storacha/w3filecoin/segment"
)

func Example() {
	contents := map[piece.Link]string{}
	var pieces []piece.Link
	for _, content := range []string{"small", strings.Repeat("large ", 1000), strings.Repeat("middle ", 100)} {
		link, err := piece.Sum([]byte(content))
		if err != nil {
			log.Fatal(err)
		}
		contents[link] = content
		pieces = append(pieces, link)
	}

	// The largest piece first, so that no room is lost.
	segment.SortDescending(pieces)
	aggregate, err := segment.Build(1<<20, pieces)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("aggregate", aggregate.Link())

	// Each piece gets a proof, which holds without the aggregate at hand.
	for i, link := range pieces {
		proof, err := aggregate.Proof(i)
		if err != nil {
			log.Fatal(err)
		}
		if err := segment.Verify(proof, link, aggregate.Link()); err != nil {
			log.Fatal(err)
		}
		fmt.Println("piece of", link.PaddedSize(), "bytes at", aggregate.Offset(i))
	}

	// The file that a storage provider downloads has the aggregate as its piece.
	file := segment.NewReader(aggregate, func(i int, off int64, p []byte) (int, error) {
		return strings.NewReader(contents[aggregate.Piece(i)]).ReadAt(p, off)
	})
	hasher := piece.NewHasher()
	if _, err := io.Copy(hasher, io.NewSectionReader(file, 0, file.Size())); err != nil {
		log.Fatal(err)
	}
	sum, err := hasher.Sum()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("same:", sum == aggregate.Link())
	// Output:
	// aggregate bafkzcibcaahzwkzlzsyqlfczdyrop6scgc3svnfu7ptyp4ijtkafz573s4xiibi
	// piece of 8192 bytes at 0
	// piece of 1024 bytes at 8192
	// piece of 128 bytes at 9216
	// same: true
}

func ExampleReadIndex() {
	link, err := piece.Sum([]byte("small"))
	if err != nil {
		log.Fatal(err)
	}
	aggregate, err := segment.Build(1<<20, []piece.Link{link})
	if err != nil {
		log.Fatal(err)
	}
	index, err := io.ReadAll(aggregate.IndexReader())
	if err != nil {
		log.Fatal(err)
	}

	// A storage provider finds the pieces of an aggregate in its index.
	entries, err := segment.ReadIndex(bytes.NewReader(index))
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range entries {
		fmt.Println(e.Offset, e.Size, e.Root == link.Root())
	}
	// Output: 0 128 true
}
