#!/usr/bin/env bash
# A real SLURM on this machine (munge, MariaDB, slurmdbd, slurmctld, two slurmd), for tests and trials.
#
#   cluster.sh up       start what is not running yet, then check it (safe to repeat)
#   cluster.sh health   check every part; the exit status says whether all is well
#   cluster.sh node N   start node N again after it was killed (dtrain1, dtrain2)
#   cluster.sh down     cancel the jobs and stop every daemon; accounting is kept
#   cluster.sh clean    down, then delete the state folder
#
# $DTRAIN_CLUSTER_ARRAY_SIZE (1001): SLURM's MaxArraySize.
# State: $DTRAIN_CLUSTER (default /var/lib/dtrain-cluster). Four ports from $DTRAIN_CLUSTER_PORT (27010), loopback
# only. Nothing is shared with a munge, MariaDB or SLURM of the machine itself. Outside the state folder it keeps
# marked lines in /etc/hosts and, if there is none yet, a link /etc/slurm/slurm.conf; `down` removes both.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
STATE=${DTRAIN_CLUSTER:-/var/lib/dtrain-cluster}
PORT=${DTRAIN_CLUSTER_PORT:-27010}
HOST=$(uname -n)
SHORT=${HOST%%.*}
NODES=(dtrain1 dtrain2)
SYSTEM_CONF=/etc/slurm/slurm.conf
MUNGE_SOCKET=$STATE/munge/socket
DB_SOCKET=$STATE/mariadb/socket
export PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$STATE/slurm.conf

# shellcheck source=slurm/devcluster/common.sh
. "$HERE/common.sh"

require() {
    [ "$(id -u)" = 0 ] || die "needs root: slurmd starts jobs as their users and node names go into /etc/hosts"
    local program
    for program in munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd; do
        command -v "$program" >/dev/null ||
            die "$program is missing: apt-get install slurm-wlm slurmdbd munge mariadb-server"
    done
    # Unix socket paths are limited to 107 bytes.
    [ ${#DB_SOCKET} -lt 100 ] || die "DTRAIN_CLUSTER=$STATE is too long a path for a socket: choose a shorter one"
}

fill() { # template target
    sed -e "s|@STATE@|$STATE|g; s|@HOST@|$SHORT|g; s|@ADDRESS@|$ADDRESS|g; s|@PORT@|$PORT|g" \
        -e "s|@ARRAY_SIZE@|${DTRAIN_CLUSTER_ARRAY_SIZE:-1001}|g" \
        -e "s|@DBD_PORT@|$((PORT + 1))|g; s|@NODE1_PORT@|$((PORT + 2))|g; s|@NODE2_PORT@|$((PORT + 3))|g" "$1" >"$2"
}

configure() {
    mkdir -p "$STATE"/{munge,mariadb,slurmctld}
    chmod 755 "$STATE" "$STATE/munge" "$STATE/mariadb"
    fill "$HERE/slurm.conf.in" "$SLURM_CONF"
    fill "$HERE/slurmdbd.conf.in" "$STATE/slurmdbd.conf"
    chmod 600 "$STATE/slurmdbd.conf"
    fill "$HERE/gres.conf.in" "$STATE/gres.conf"
    touch "$STATE"/gpu{0,1,2,3}
    if [ ! -e "$SYSTEM_CONF" ]; then
        mkdir -p "${SYSTEM_CONF%/*}"
        ln -sf "$SLURM_CONF" "$SYSTEM_CONF"
    fi
}

start_munge() {
    alive munged "$STATE/munge/pid" && return
    rm -f "$STATE"/munge/{pid,socket,socket.lock}
    if [ ! -s "$STATE/munge/key" ]; then
        (umask 077 && head -c 1024 /dev/urandom >"$STATE/munge/key")
    fi
    daemon "$STATE/munge/out" munged --socket="$MUNGE_SOCKET" --key-file="$STATE/munge/key" \
        --pid-file="$STATE/munge/pid" --log-file="$STATE/munge/log" --seed-file="$STATE/munge/seed" --num-threads=4
    wait_for 60 munged munge --socket="$MUNGE_SOCKET" --no-input
}

start_mariadb() {
    alive mariadbd "$STATE/mariadb/pid" && return
    rm -f "$STATE/mariadb/pid" "$DB_SOCKET"
    local data=$STATE/mariadb/data owner=root
    id mysql >/dev/null 2>&1 && owner=mysql
    chown "$owner" "$STATE/mariadb"
    if [ ! -d "$data/mysql" ]; then
        rm -rf "$data"
        daemon "$STATE/mariadb/log" mariadb-install-db --no-defaults --datadir="$data" --user="$owner" \
            --auth-root-authentication-method=socket --auth-root-socket-user=root --skip-test-db --skip-name-resolve
    fi
    # Its waiting shell must not keep our own output open.
    daemon "$STATE/mariadb/log" mariadbd --no-defaults --datadir="$data" --user="$owner" --socket="$DB_SOCKET" \
        --pid-file="$STATE/mariadb/pid" --skip-networking --innodb-buffer-pool-size=64M \
        --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 >/dev/null 2>&1 &
    wait_for 300 MariaDB mariadb-admin --no-defaults --socket="$DB_SOCKET" ping
}

start_slurm() {
    if ! alive slurmdbd "$STATE/slurmdbd.pid"; then
        rm -f "$STATE/slurmdbd.pid"
        daemon "$STATE/slurmdbd.out" slurmdbd
    fi
    wait_for 300 slurmdbd sacctmgr -n show cluster
    sacctmgr -n show cluster dtrain format=cluster | grep -q dtrain || sacctmgr -i add cluster dtrain >/dev/null
    if ! alive slurmctld "$STATE/slurmctld.pid"; then
        rm -f "$STATE/slurmctld.pid"
        daemon "$STATE/slurmctld.out" slurmctld
    fi
    wait_for 120 slurmctld scontrol ping
    local node
    for node in "${NODES[@]}"; do start_node "$node"; done
}

start_node() { # name
    alive slurmd "$STATE/$1.pid" && return
    rm -f "$STATE/$1.pid"
    mkdir -p "$STATE/spool-$1"
    daemon "$STATE/$1.out" slurmd -N "$1"
}

# A node that died, or that a person drained, would otherwise stay out after a new start.
resume_nodes() {
    local node
    for node in "${NODES[@]}"; do
        case $(sinfo --noheader --nodes="$node" --partition=main --format=%T) in
        drain* | down* | inval*) scontrol update NodeName="$node" State=RESUME ;;
        esac
    done
}

nodes_ready() {
    local ready
    ready=$(sinfo --noheader --Node --partition=main --format='%T' | grep -cxE 'idle|mixed|allocated|completing')
    [ "$ready" = ${#NODES[@]} ]
}

check() { # what command...
    local what=$1
    shift
    if "$@" >/dev/null 2>&1; then say "ok   $what"; else
        say "FAIL $what" >&2
        return 1
    fi
}

health() {
    local bad=0 node
    check "munge encodes and decodes" bash -o pipefail -c \
        "munge --socket='$MUNGE_SOCKET' --no-input | unmunge --socket='$MUNGE_SOCKET'" || bad=1
    check "MariaDB answers" mariadb-admin --no-defaults --socket="$DB_SOCKET" ping || bad=1
    check "slurmdbd knows the cluster" bash -o pipefail -c "sacctmgr -n show cluster | grep -q dtrain" || bad=1
    check "slurmctld answers" scontrol ping || bad=1
    for node in "${NODES[@]}"; do check "slurmd of $node runs" alive slurmd "$STATE/$node.pid" || bad=1; done
    check "both nodes take jobs" nodes_ready || bad=1
    check "listens on loopback only" loopback_only || bad=1
    return "$bad"
}

up() {
    require
    if ! alive slurmctld "$STATE/slurmctld.pid" && ! alive slurmdbd "$STATE/slurmdbd.pid" && [ -n "$(listeners)" ]; then
        die "another program listens on one of the ports $PORT to $((PORT + 3)): set DTRAIN_CLUSTER_PORT to four free ones"
    fi
    publish_names
    configure
    start_munge
    start_mariadb
    start_slurm
    resume_nodes
    wait_for 300 "a node" nodes_ready
    health
    say "ready. In a shell: export SLURM_CONF=$SLURM_CONF"
}

no_jobs() { [ -z "$(squeue --noheader --format=%A)" ]; }

# Steps outlive their slurmd: end those that were started with this cluster's configuration.
stop_steps() {
    local environ pid
    for environ in /proc/[0-9]*/environ; do
        pid=${environ#/proc/} pid=${pid%/environ}
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = slurmstepd ] &&
            { tr '\0' '\n' <"$environ"; } 2>/dev/null | grep -qxF "SLURM_CONF=$SLURM_CONF"; then
            kill -KILL "$pid" 2>/dev/null || true
        fi
    done
}

down() {
    require
    if alive slurmctld "$STATE/slurmctld.pid"; then
        squeue --noheader --format=%A | sort -u | xargs --no-run-if-empty scancel || true
        for _ in $(seq 75); do
            no_jobs && break
            sleep 0.2
        done
    fi
    local node
    for node in "${NODES[@]}"; do stop slurmd "$STATE/$node.pid"; done
    stop slurmctld "$STATE/slurmctld.pid"
    stop slurmdbd "$STATE/slurmdbd.pid"
    stop_steps
    stop mariadbd "$STATE/mariadb/pid"
    stop munged "$STATE/munge/pid"
    forget_names
    if [ "$(readlink "$SYSTEM_CONF" || true)" = "$SLURM_CONF" ]; then rm "$SYSTEM_CONF"; fi
    say "stopped"
}

case ${1:-} in
up) up ;;
down) down ;;
health) health ;;
node)
    require
    start_node "${2:?which node? dtrain1 or dtrain2}"
    wait_for 120 "$2" nodes_ready
    ;;
clean)
    down
    rm -rf "$STATE"
    ;;
*) sed -n '2,/^set /{/^#/p}' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
