# part NAME COMMAND... runs one part of a gate: it prints the command before and the wall time after. A part that fails ends the script.
part() {
  local name=$1 began=$SECONDS
  shift
  printf '\n=== %s: %s\n' "$name" "$*"
  "$@"
  printf '=== %s: ok, %d s\n' "$name" $((SECONDS - began))
}
