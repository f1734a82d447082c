package wire

import (
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"

	"github.com/storacha/w3filecoin/wire/cbor"
)

// messageTag names the version of the agent message.
const messageTag = "ucanto/message@7.0.0"

// Message is an agent message: invocations to be executed, receipts of tasks, and blocks that both refer to. The zero
// Message is empty, to be filled by AddInvocation and AddReceipt.
//
// A decoded Message is safe for concurrent use.
type Message struct {
	invocations []*UCAN
	receipts    []*Receipt
	tasks       map[cid.Cid]int // index of receipts by task; nil while they are few
	set         blockSet        // all blocks but the root
	decoded     []*UCAN         // for each block the UCAN in it, if that had to be decoded
}

// DecodeMessage decodes a CAR with one root, the message. It decodes all that the message vouches for: the
// invocations under "execute" and every proof below them that is included, and the receipts under "report"; each must
// be there and well formed, and each receipt must be about the task it is listed under. Other blocks are kept as they
// are; see UCAN and Block.
//
// The error wraps ErrMalformed or ErrLimit. The message aliases b.
func DecodeMessage(b []byte, limits Limits) (*Message, error) {
	limits = limits.withDefaults()
	m, root, err := openMessage(b, limits)
	if err != nil {
		return nil, err
	}
	if err := m.decodeRoot(root.Bytes, limits); err != nil {
		return nil, fmt.Errorf("message %v: %w", root.CID, err)
	}
	return m, nil
}

// openMessage reads a CAR and sets aside its one root.
func openMessage(b []byte, limits Limits) (*Message, Block, error) {
	roots, set, err := readCAR(b, limits)
	if err != nil {
		return nil, Block{}, err
	}
	if len(roots) != 1 {
		return nil, Block{}, fmt.Errorf("%w: CAR with %d roots, want one", ErrMalformed, len(roots))
	}
	i := set.find(roots[0])
	if i < 0 || !isDAGCBOR(roots[0]) {
		return nil, Block{}, fmt.Errorf("%w: root %.100s is missing or not DAG-CBOR with SHA2-256", ErrMalformed, roots[0])
	}
	root := set.blocks[i]
	set.remove(i)
	return &Message{set: set, decoded: make([]*UCAN, len(set.blocks))}, root, nil
}

func (m *Message) decodeRoot(b []byte, limits Limits) error {
	r := cbor.NewReader(b)
	if r.Map() != 1 || string(r.Key()) != messageTag {
		r.Failf("not an agent message of version %s", messageTag)
	}
	for range r.Map() {
		var err error
		switch string(r.Key()) {
		case "report":
			err = m.decodeReport(r, limits)
		case "execute":
			err = m.decodeExecute(r, limits)
		default:
			r.Failf("unknown field")
		}
		if err != nil {
			return err
		}
	}
	return r.Done()
}

func (m *Message) decodeExecute(r *cbor.Reader, limits Limits) error {
	n := r.Array()
	if n > limits.Invocations {
		return fmt.Errorf("%w: %d invocations, more than %d", ErrLimit, n, limits.Invocations)
	}
	m.invocations = slices.Grow(m.invocations, n)
	for range n {
		c := r.LinkBytes()
		if r.Err() != nil {
			return r.Err()
		}
		u, err := m.decodeUCAN(find(&m.set, c))
		if err != nil {
			return err
		}
		if u == nil {
			return fmt.Errorf("%w: invocation %.64x is not in the message", ErrMalformed, c)
		}
		if err := m.decodeProofs(u, limits); err != nil {
			return fmt.Errorf("invocation %v: %w", u.Link(), err)
		}
		m.invocations = append(m.invocations, u)
	}
	return nil
}

// decodeUCAN returns the UCAN in block i, nil if i is negative.
func (m *Message) decodeUCAN(i int) (*UCAN, error) {
	if i < 0 {
		return nil, nil
	}
	if m.decoded[i] == nil {
		u, err := DecodeUCAN(m.set.blocks[i])
		if err != nil {
			return nil, err
		}
		m.decoded[i] = u
	}
	return m.decoded[i], nil
}

// decodeProofs decodes the proofs below an invocation. Each is looked at once, however many paths lead to it.
func (m *Message) decodeProofs(u *UCAN, limits Limits) error {
	if len(u.Proofs) == 0 {
		return nil
	}
	// heights tells for each proof how many levels there are from it down, itself included.
	heights := make(map[cid.Cid]int, len(u.Proofs))
	var descend func(u *UCAN, depth int) (height int, err error)
	descend = func(u *UCAN, depth int) (int, error) {
		tallest := 0
		for _, c := range u.Proofs {
			height, known := heights[c]
			if !known {
				if len(heights) == limits.Proofs {
					return 0, fmt.Errorf("%w: more than %d proofs", ErrLimit, limits.Proofs)
				}
				height = 1
				heights[c] = height
				proof, err := m.decodeUCAN(m.set.find(c))
				if err != nil {
					return 0, fmt.Errorf("proof: %w", err)
				}
				if proof != nil && depth < limits.ProofDepth {
					below, err := descend(proof, depth+1)
					if err != nil {
						return 0, err
					}
					height += below
					heights[c] = height
				} else if proof != nil && len(proof.Proofs) > 0 {
					height++
				}
			}
			if depth+height-1 > limits.ProofDepth {
				return 0, fmt.Errorf("%w: proofs deeper than %d", ErrLimit, limits.ProofDepth)
			}
			tallest = max(tallest, height)
		}
		return tallest, nil
	}
	_, err := descend(u, 1)
	return err
}

func (m *Message) decodeReport(r *cbor.Reader, limits Limits) error {
	n := r.Map()
	if n > limits.Receipts {
		return fmt.Errorf("%w: %d receipts, more than %d", ErrLimit, n, limits.Receipts)
	}
	m.receipts = slices.Grow(m.receipts, n)
	for range n {
		task := r.Key()
		c := r.LinkBytes()
		if r.Err() != nil {
			return r.Err()
		}
		i := find(&m.set, c)
		if i < 0 {
			return fmt.Errorf("%w: receipt %.64x is not in the message", ErrMalformed, c)
		}
		rc, err := DecodeReceipt(m.set.blocks[i])
		if err != nil {
			return err
		}
		var text [96]byte
		if string(cbor.AppendCIDText(text[:0], rc.Ran.KeyString())) != string(task) {
			return fmt.Errorf("%w: receipt of %.100s is listed under %.80q", ErrMalformed, rc.Ran, task)
		}
		if len(rc.Proofs) > limits.Proofs {
			return fmt.Errorf("%w: receipt %v has more than %d proofs", ErrLimit, rc.Link(), limits.Proofs)
		}
		m.report(rc)
	}
	return nil
}

// report notes a receipt unless there is one of its task already.
func (m *Message) report(rc *Receipt) {
	if m.Receipt(rc.Ran) != nil {
		return
	}
	m.receipts = append(m.receipts, rc)
	switch {
	case m.tasks != nil:
		m.tasks[rc.Ran] = len(m.receipts) - 1
	case len(m.receipts) > fewBlocks:
		m.tasks = make(map[cid.Cid]int, 4*fewBlocks)
		for i, rc := range m.receipts {
			m.tasks[rc.Ran] = i
		}
	}
}

// Invocations returns the invocations to be executed, in the order of the message.
func (m *Message) Invocations() []*UCAN { return m.invocations }

// Receipts returns the receipts: of a decoded message in the order of their tasks' CIDs as text, else as added.
func (m *Message) Receipts() []*Receipt { return m.receipts }

// Receipt returns the receipt of a task, nil if the message reports none.
func (m *Message) Receipt(task cid.Cid) *Receipt {
	if m.tasks != nil {
		if i, ok := m.tasks[task]; ok {
			return m.receipts[i]
		}
		return nil
	}
	for _, rc := range m.receipts {
		if rc.Ran == task {
			return rc
		}
	}
	return nil
}

// Blocks returns all blocks but that of the message itself, in the order of the CAR.
func (m *Message) Blocks() []Block { return m.set.blocks }

// Block returns the block under c, whether anything links to it or not.
func (m *Message) Block(c cid.Cid) (Block, bool) {
	if i := m.set.find(c); i >= 0 {
		return m.set.blocks[i], true
	}
	return Block{}, false
}

// UCAN returns the UCAN in the block under c; nil and no error if there is no such block. The error wraps
// ErrMalformed.
func (m *Message) UCAN(c cid.Cid) (*UCAN, error) {
	i := m.set.find(c)
	if i < 0 {
		return nil, nil
	}
	if i < len(m.decoded) && m.decoded[i] != nil {
		return m.decoded[i], nil
	}
	return DecodeUCAN(m.set.blocks[i])
}

// Export returns the blocks of the message that belong to u, in the order of the JavaScript implementation: the proofs
// below it, each after its own proofs; the blocks that its caveats and facts link to; and u's own block last.
func (m *Message) Export(u *UCAN) []Block {
	var set blockSet
	m.exportProofs(&set, u)
	for c := range u.linkBytes {
		if i := find(&m.set, c); i >= 0 {
			set.add(m.set.blocks[i])
		}
	}
	set.add(u.Block())
	return set.blocks
}

func (m *Message) exportProofs(set *blockSet, u *UCAN) {
	for _, c := range u.Proofs {
		if set.find(c) >= 0 {
			continue
		}
		proof, err := m.UCAN(c)
		if proof == nil || err != nil {
			continue
		}
		m.exportProofs(set, proof)
		set.add(proof.Block())
	}
}

// AddInvocation adds an invocation, signed or decoded, to be executed. The blocks that come with it, its proofs and
// attachments, are placed before it; blocks already in the message are not repeated.
func (m *Message) AddInvocation(u *UCAN, with ...Block) {
	for _, b := range with {
		m.set.add(b)
	}
	m.set.add(u.Block())
	m.invocations = append(m.invocations, u)
}

// AddReceipt adds a receipt, signed or decoded. The blocks that come with it are placed before it; the JavaScript
// implementation sends what Export returns for the task's invocation, then likewise for those of its effects that it
// has, then its proofs. Of two receipts for one task the first is reported.
func (m *Message) AddReceipt(rc *Receipt, with ...Block) {
	for _, b := range with {
		m.set.add(b)
	}
	m.set.add(rc.Block())
	m.report(rc)
}

// Encode returns the CAR of the message, byte for byte as the JavaScript implementation writes it: what is empty is
// left out, the blocks stand in the order in which they were added, the message comes last.
func (m *Message) Encode() []byte {
	b := make([]byte, 0, 64+48*len(m.invocations)+112*len(m.receipts))
	b = cbor.AppendMap(b, 1)
	b = cbor.AppendText(b, messageTag)
	fields := 0
	if len(m.invocations) > 0 {
		fields++
	}
	if len(m.receipts) > 0 {
		fields++
	}
	b = cbor.AppendMap(b, fields)
	if len(m.receipts) > 0 {
		type entry struct {
			task    string
			receipt cid.Cid
		}
		report := make([]entry, len(m.receipts))
		for i, rc := range m.receipts {
			report[i] = entry{string(cbor.AppendCIDText(nil, rc.Ran.KeyString())), rc.Link()}
		}
		slices.SortFunc(report, func(x, y entry) int { return cbor.CompareKeys(x.task, y.task) })
		b = cbor.AppendText(b, "report")
		b = cbor.AppendMap(b, len(report))
		for _, e := range report {
			b = cbor.AppendText(b, e.task)
			b = cbor.AppendLink(b, e.receipt)
		}
	}
	if len(m.invocations) > 0 {
		b = cbor.AppendText(b, "execute")
		b = cbor.AppendArray(b, len(m.invocations))
		for _, u := range m.invocations {
			b = cbor.AppendLink(b, u.Link())
		}
	}
	root := EncodeBlock(b)
	size := 256 + len(b)
	for _, block := range m.set.blocks {
		size += 10 + block.CID.ByteLen() + len(block.Bytes)
	}
	car := AppendCAR(make([]byte, 0, size), []cid.Cid{root.CID}, m.set.blocks)
	return appendSection(car, root)
}
