// Checks what otel-audit writes with the verifiers of others: golang.org/x/mod/sumdb/note for
// checkpoints, github.com/transparency-dev/merkle for proofs. Reads JSON lines, answers each.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

type question struct {
	Key, Note, Old         string
	Entry                  []byte
	Index                  uint64
	Inclusion, Consistency [][]byte
}

func checkpoint(text string, key string) (uint64, []byte, error) {
	verifier, err := note.NewVerifier(key)
	if err != nil {
		return 0, nil, err
	}
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	if err != nil {
		return 0, nil, err
	}
	lines := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return 0, nil, err
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	return size, root, err
}

func check(asked question) error {
	size, root, err := checkpoint(asked.Note, asked.Key)
	if err != nil {
		return err
	}
	if asked.Entry != nil {
		leaf := rfc6962.DefaultHasher.HashLeaf(asked.Entry)
		err = proof.VerifyInclusion(rfc6962.DefaultHasher, asked.Index, size, leaf, asked.Inclusion, root)
		if err != nil {
			return err
		}
	}
	if asked.Old != "" {
		oldSize, oldRoot, err := checkpoint(asked.Old, asked.Key)
		if err != nil {
			return err
		}
		return proof.VerifyConsistency(rfc6962.DefaultHasher, oldSize, size, asked.Consistency, oldRoot, root)
	}
	return nil
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	for in.Scan() {
		var asked question
		err := json.Unmarshal(in.Bytes(), &asked)
		if err == nil {
			err = check(asked)
		}
		if err != nil {
			fmt.Printf("refused: %q\n", err.Error())
		} else {
			fmt.Println("ok")
		}
	}
}
