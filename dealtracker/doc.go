// Package dealtracker is the role that watches Filecoin and knows which deals hold which piece.
//
// It reads events from a [Source] and keeps them, never a conclusion drawn from them: what became of a deal is worked out from its events
// when somebody asks (deal/info). Events may therefore be read again, late, or in any order, and give the same rows and the same answers.
//
// # Reading
//
// Each epoch is read at least twice. Once it is final its events are kept as such, and the cursor moves on; until then whatever is between the
// final epochs and the head has been read ahead, and the newest epochs of that are read again with each poll, as the chain may still
// change them. So an event that a reorganisation took back is never taken for one that stands, even if nobody said that it was taken
// back: it stands when it was read at an epoch that can no longer change. The cursor moves after the rows of its range are committed. A
// restart reads the last 900 epochs once more.
//
// # Status of a deal
//
//	published ──▶ active ──▶ expired      at its end epoch
//	    │            └─────▶ terminated   before that
//	    └────────▶ expired                its start epoch is final, and it did not become active by then
//
// Good news counts when it is final (unless the operator wants it when it is seen), bad news as soon as it is seen.
//
// service.go holds the capability, events.go the poll, records.go the rows and what follows from them.
package dealtracker
