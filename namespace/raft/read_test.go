package raft

import "testing"

func TestWhoWaitedInVainForAReadWaitsShortlyUntilAnAnswerComes(t *testing.T) {
	var r reads
	var token []byte
	ask := func(b []byte) { token = b }
	join := func() *round {
		t.Helper()
		on, err := r.join()
		if err != nil {
			t.Fatal(err)
		}
		return on
	}
	first := join()
	r.send(ask, 1)
	second := join()
	if r.isSilent() {
		t.Error("before anybody gave up")
	}
	r.gaveUp(second) // not asked yet
	if !r.isSilent() {
		t.Error("after somebody gave up")
	}
	r.answered(token, 7)
	if r.isSilent() {
		t.Error("after an answer")
	}
	r.gaveUp(first) // the leader answered, only this node is slow
	if r.isSilent() {
		t.Error("that entries are applied slowly says nothing about the leader")
	}
	r.reached(7)
	select {
	case <-first.done:
	default:
		t.Error("the answer did not end the round")
	}
	r.send(ask, 2)
	r.gaveUp(second)
	if !r.isSilent() {
		t.Error("after a question that was asked and not answered")
	}
	r.end(ErrClosed)
}
