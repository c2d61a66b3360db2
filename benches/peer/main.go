// The peer for the measurement of POST /webhook: what Go's net/http makes of
// the same work. It checks the signature, parses what the pool acts on, leaves
// repeated deliveries out, and hands the event to another goroutine.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
)

type delivery struct {
	Action      string `json:"action"`
	WorkflowJob struct {
		ID         uint64   `json:"id"`
		Labels     []string `json:"labels"`
		RunnerID   *uint64  `json:"runner_id"`
		RunnerName *string  `json:"runner_name"`
	} `json:"workflow_job"`
}

const (
	remembered = 8192
	maxBody    = 25 << 20
)

// deliveries are the ids seen last.
type deliveries struct {
	sync.Mutex
	seen  map[string]struct{}
	order [remembered]string
	next  int
}

func (d *deliveries) isNew(id string) bool {
	d.Lock()
	defer d.Unlock()
	if _, known := d.seen[id]; known {
		return false
	}
	delete(d.seen, d.order[d.next])
	d.seen[id] = struct{}{}
	d.order[d.next] = id
	d.next = (d.next + 1) % remembered
	return true
}

func main() {
	secret := []byte(os.Getenv("WEBHOOK_SECRET"))
	seen := &deliveries{seen: make(map[string]struct{}, remembered)}
	events := make(chan delivery, 1024)
	go func() {
		waiting := map[uint64]struct{}{}
		for event := range events {
			waiting[event.WorkflowJob.ID] = struct{}{}
		}
	}()
	http.HandleFunc("/webhook", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			http.Error(w, "Too large", http.StatusRequestEntityTooLarge)
			return
		}
		given, err := hex.DecodeString(strings.TrimPrefix(r.Header.Get("X-Hub-Signature-256"), "sha256="))
		mac := hmac.New(sha256.New, secret)
		mac.Write(body)
		if err != nil || !hmac.Equal(given, mac.Sum(nil)) {
			http.Error(w, "Invalid signature", http.StatusUnauthorized)
			return
		}
		var event delivery
		if err := json.Unmarshal(body, &event); err != nil {
			http.Error(w, "Bad JSON", http.StatusBadRequest)
			return
		}
		if id := r.Header.Get("X-GitHub-Delivery"); id == "" || seen.isNew(id) {
			events <- event
		}
		io.WriteString(w, "OK")
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
