package source

import (
	"encoding/json"
	"net/http"
	"strings"
)

// A failure is the body of every answer that is not a success: a name to switch on and a sentence that says what to do.
type failure struct {
	Name    string `json:"name"`
	Message string `json:"message"`
}

func refuse(w http.ResponseWriter, status int, name, message string) {
	w.Header().Set("Cache-Control", "no-store")
	reply(w, status, failure{Name: name, Message: message})
}

func reply(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		http.Error(w, "encoding the answer failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	w.Write(append(b, '\n'))
}

// refuseMethod answers requests whose method is not one of allowed.
func refuseMethod(w http.ResponseWriter, allowed ...string) {
	list := strings.Join(allowed, ", ")
	w.Header().Set("Allow", list)
	refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "use one of: "+list)
}
