package namespace

import (
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// The vectors are those of the reference implementation: key 00 01 … 0f, input
// 00 01 … of the given length.
func TestSipHashAgreesWithItsReference(t *testing.T) {
	var input [16]byte
	for i := range input {
		input[i] = byte(i)
	}
	k0, k1 := binary.LittleEndian.Uint64(input[:]), binary.LittleEndian.Uint64(input[8:])
	for n, want := range map[int]string{
		0:  "a3817f04ba25a8e66df67214c7550293",
		1:  "da87c1d86b99af44347659119b22fc45",
		2:  "8177228da4a45dc7fca38bdef60affe4",
		15: "5493e99933b0a8117e08ec0f97cfc3d9",
	} {
		a, b := sipHash128(k0, k1, string(input[:n]))
		got := hex.EncodeToString(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, a), b))
		if got != want {
			t.Errorf("%d bytes: %s, want %s", n, got, want)
		}
	}
}

func TestCookiesStayClearOfReservedValuesAndTheSignBit(t *testing.T) {
	for _, mask := range []uint64{0, 3, 15, maxCookie} {
		s := &State{hashMask: mask}
		for i := range 1000 {
			if c, _ := s.hashName(string(rune(i))); c < minCookie || c > maxCookie {
				t.Fatalf("cookie %#x under mask %#x", c, mask)
			}
		}
	}
}
