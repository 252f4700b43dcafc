# Parts of cluster.sh that know nothing of SLURM: processes, ports and names. Sourced.
# shellcheck shell=bash

say() { printf 'cluster: %s\n' "$*"; }
die() {
    printf 'cluster: %s\n' "$*" >&2
    exit 1
}

# A pid file counts only while that process still runs that program: pids are reused after a reboot.
alive() { # program pid-file
    local pid
    pid=$(cat "$2" 2>/dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]
}

# Runs a program with a clean environment, detached from this shell's output, which a caller may be piping.
daemon() { # log-file command...
    local log=$1
    shift
    (cd / && env -i PATH="$PATH" SLURM_CONF="$SLURM_CONF" MYSQL_UNIX_PORT="$DB_SOCKET" LC_ALL=C \
        setsid "$@" </dev/null >>"$log" 2>&1)
}

stop() { # program pid-file
    if alive "$1" "$2"; then
        local pid
        pid=$(cat "$2")
        kill "$pid"
        for _ in $(seq 100); do
            alive "$1" "$2" || break
            sleep 0.1
        done
        if alive "$1" "$2"; then kill -KILL "$pid"; fi
    fi
    rm -f "$2"
}

wait_for() { # seconds what command...
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "$what does not answer; see the logs in $STATE"
        sleep 0.2
    done
}

# The local addresses, as /proc writes them, on which some program listens at one of the cluster's four ports.
listeners() {
    local offset hex
    for offset in 0 1 2 3; do
        hex=$(printf '%04X' $((PORT + offset)))
        cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v port=":$hex" '$4 == "0A" && $2 ~ (port "$") { print $2 }'
    done
}

# Nothing of the cluster may listen outside 127.0.0.0/8: in /proc, eight digits that end in 7F.
loopback_only() { ! listeners | grep -qvE '^[0-9A-F]{6}7F:'; }

MARK="# dtrain cluster in $STATE"

address_of() { getent ahostsv4 "$1" | awk '{ print $1; exit }'; }

# /etc/hosts is rewritten in place, since it is a bind mount in containers.
forget_names() {
    local rest
    if grep -qF "$MARK" /etc/hosts; then
        rest=$(grep -vF "$MARK" /etc/hosts || true)
        printf '%s\n' "$rest" >/etc/hosts
    fi
}

lines_for() {
    local name
    for name in "$@"; do printf '127.0.0.1 %s %s\n' "$name" "$MARK"; done
}

# Daemons and ranks find each other by name: the node names, and this host's name, must mean loopback. The node names
# come last: 127.0.0.1 keeps its first name, which programs look up, while the cluster comes and goes.
publish_names() {
    local own="" rest
    forget_names
    case $(address_of "$HOST") in 127.*) ;; *) own="$HOST $SHORT" ;; esac
    rest=$(cat /etc/hosts)
    # shellcheck disable=SC2086  # names are words
    printf '%s\n' "$(lines_for $own)" "$rest" "$(lines_for "${NODES[@]}")" | sed '/^$/d' >/etc/hosts
    ADDRESS=$(address_of "$HOST")
    case $ADDRESS in 127.*) ;; *) die "this host's name, $HOST, means '$ADDRESS', not a loopback address" ;; esac
}
