# Ways to an upstream that are half broken, on real sockets: dead addresses, dead nameservers, connections that a NAT forgot.
# What is lost goes to a neighbour that nobody is: no firewall is needed. Prints what each took.
# shellcheck shell=bash

NETWORK_PORT=5600
# The registry's addresses, and how many of either family are dead. getaddrinfo sorts IPv6 before IPv4, and what shares more
# bits with our address before the rest (RFC 6724 §6, rules 6 and 9): the dead before the living.
NETWORK_V4=10.77.0.128
NETWORK_V6=2001:db8:77::8000
NETWORK_DEAD_MAX=8
# A first nameserver, and a second one that is well.
FIRST_NAMESERVER=127.0.0.53
SECOND_NAMESERVER=127.0.0.54
DEAD_NAMESERVER=10.77.0.66

network_scenarios() {
  prepare_network
  local count
  for count in 1 2 3 8; do
    check "$count dead IPv6 addresses before an IPv4 one" dead_addresses "v6-$count-v4" 1.0
    check "$count dead IPv4 addresses before an IPv4 one" dead_addresses "v4-$count-v4" "$(awk "BEGIN {print $count * 0.25 + 0.5}")"
    check "$count dead IPv4 addresses beside an IPv6 one" dead_addresses "v4-$count-v6" 1.0
    check "$count dead IPv6 addresses before an IPv6 one" dead_addresses "v6-$count-v6" "$(awk "BEGIN {print $count * 0.25 + 0.5}")"
    report_figures
  done
  check "a first nameserver that is dead" slow_nameserver dead
  check "a first nameserver that answers after 4 s" slow_nameserver late
  check "a first nameserver that answers SERVFAIL" slow_nameserver servfail
  check "SERVFAIL for a host that was resolved before" failing_nameserver servfail
  check "NXDOMAIN for a host that was resolved before" failing_nameserver nxdomain
  check "no nameserver for a host that was resolved before" failing_nameserver dead
  check "a stop beside a look-up that nobody answers" stop_beside_a_look_up
  check "connections that a NAT forgot" forgotten_connections
  report_figures
  stop_network
}

# A veth pair to the registry's namespace, and two nameservers. The world has a mount namespace, so resolv.conf can be its own.
prepare_network() {
  local last
  mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns
  ip netns add far
  ip link add near type veth peer name farend netns far
  ip addr add 10.77.0.1/24 dev near
  ip -6 addr add 2001:db8:77::1/64 dev near nodad
  ip link set near up
  ip -n far addr add "$NETWORK_V4/24" dev farend
  ip -n far -6 addr add "$NETWORK_V6/64" dev farend nodad
  ip -n far link set farend up
  ip neigh add "$DEAD_NAMESERVER" lladdr 02:00:00:00:00:99 dev near
  for ((last = 0; last < NETWORK_DEAD_MAX; last++)); do
    ip neigh add "10.77.0.$((8 + last))" lladdr 02:00:00:00:00:99 dev near
    ip -6 neigh add "$(printf '2001:db8:77::%x' $((8 + last)))" lladdr 02:00:00:00:00:99 dev near
  done
  spawn network-registry ip netns exec far python3 "$HERE/network.py" registry 80 close
  spawn network-keeping ip netns exec far python3 "$HERE/network.py" registry 81 keep
  write_zone
  nameserver_mode first good
  nameserver_mode second good
  spawn dns-first python3 "$HERE/network.py" dns "$FIRST_NAMESERVER" "$TMP/first.zone"
  spawn dns-second python3 "$HERE/network.py" dns "$SECOND_NAMESERVER" "$TMP/second.zone"
  echo 'hosts: files dns' >"$TMP/nsswitch.conf"
  mount --bind "$TMP/nsswitch.conf" /etc/nsswitch.conf
  nameservers "$FIRST_NAMESERVER" "$SECOND_NAMESERVER"
  mount --bind "$TMP/resolv.conf" /etc/resolv.conf
  : >"$TMP/figures"
  wait_for 20 answers "http://$NETWORK_V4/v2/"
  wait_for 20 answers "http://$NETWORK_V4:81/v2/"
}

stop_network() {
  local name
  for name in network-registry network-keeping dns-first dns-second; do stop "$name"; done
  umount /etc/resolv.conf /etc/nsswitch.conf
  ip link del near
  ip netns del far
  umount -l /run/netns
}

# Names that say what they are: DEAD-COUNT-GOOD.test; and one that is well.
write_zone() {
  local count dead good last line
  {
    echo "well.test $NETWORK_V4"
    for count in 1 2 3 8; do
      for dead in v4 v6; do
        for good in v4 v6; do
          line="$dead-$count-$good.test"
          for ((last = 0; last < count; last++)); do
            if [[ $dead == v4 ]]; then line+=" 10.77.0.$((8 + last))"; else line+=" $(printf '2001:db8:77::%x' $((8 + last)))"; fi
          done
          if [[ $good == v4 ]]; then echo "$line $NETWORK_V4"; else echo "$line $NETWORK_V6"; fi
        done
      done
    done
  } >"$TMP/names.zone"
}

# nameserver_mode first|second good|late|servfail|nxdomain
nameserver_mode() { { cat "$TMP/names.zone"; echo "mode $2"; } >"$TMP/$1.zone.new" && mv "$TMP/$1.zone.new" "$TMP/$1.zone"; }

# In place: the file is mounted.
nameservers() { printf 'nameserver %s\n' "$@" >"$TMP/resolv.conf"; }

start_network_larder() {
  stop network-larder
  rm -rf "$TMP/network-larder.cache"
  : >"$TMP/network-larder.log"
  start_larder network-larder "$NETWORK_PORT" "$1" 1s
}

# timed REPOSITORY: pulls a manifest; sets TOOK in seconds, and STATUS.
timed() {
  read -r STATUS TOOK < <(curl -s -o "$TMP/network.body" -w '%{http_code} %{time_total}\n' --max-time 60 \
    "http://127.0.0.1:$NETWORK_PORT/v2/library/$1/manifests/latest")
}

# took WHAT MOST: notes the figure; it must be 200 and soon enough.
took() {
  echo "$1: $STATUS after $TOOK s (at most $2 s)" | tee -a "$TMP/figures"
  same "$1" 200 "$STATUS"
  awk "BEGIN {exit !($TOOK <= $2)}"
}

report_figures() {
  sed 's/^/     /' "$TMP/figures"
  : >"$TMP/figures"
}

# dead_addresses NAME SECONDS: the first connection, and the next one. (The registry closes each.)
dead_addresses() {
  start_network_larder "http://$1.test"
  trap 'stop network-larder' EXIT
  timed first
  took "$1, first" "$2"
  timed next
  took "$1, next" 0.3
}

# slow_nameserver MODE: from the first question of a process on.
slow_nameserver() {
  trap 'stop network-larder; nameservers "$FIRST_NAMESERVER" "$SECOND_NAMESERVER"; nameserver_mode first good' EXIT
  if [[ $1 == dead ]]; then nameservers "$DEAD_NAMESERVER" "$SECOND_NAMESERVER"; else nameserver_mode first "$1"; fi
  start_network_larder http://well.test
  timed first
  took "first nameserver $1, first" 25
  timed next
  took "first nameserver $1, next" 1
}

# failing_nameserver MODE: both, after a question that was answered.
failing_nameserver() {
  trap 'stop network-larder; nameservers "$FIRST_NAMESERVER" "$SECOND_NAMESERVER"; nameserver_mode first good; nameserver_mode second good' EXIT
  start_network_larder http://well.test
  timed before
  took "all nameservers well" 1
  nameserver_mode first "$1" || true
  nameserver_mode second "$1" || true
  [[ $1 != dead ]] || nameservers "$DEAD_NAMESERVER"
  timed first
  took "all nameservers $1, first" 1
  timed next
  took "all nameservers $1, next" 1
  same warnings 1 "$(grep -c 'using its last known addresses' "$TMP/network-larder.log")"
}

asks_a_nameserver() { ss -Hun | grep -q "$DEAD_NAMESERVER:53"; }

# getaddrinfo cannot be interrupted, and its thread must not keep the daemon.
stop_beside_a_look_up() {
  local begin
  trap 'stop network-larder; nameservers "$FIRST_NAMESERVER" "$SECOND_NAMESERVER"' EXIT
  nameservers "$DEAD_NAMESERVER"
  start_network_larder http://well.test
  curl -s -o /dev/null --max-time 60 "http://127.0.0.1:$NETWORK_PORT/v2/library/first/manifests/latest" &
  wait_for 10 asks_a_nameserver
  kill %%
  begin=$SECONDS
  stop network-larder
  asks_a_nameserver && { echo "the look-up still runs"; exit 1; }
  echo "stopped after $((SECONDS - begin)) s (at most 4 s)" | tee -a "$TMP/figures"
  ((SECONDS - begin <= 4))
}

# What comes from the address that connections had so far is lost from now on; new ones have another.
forget_connections() {
  ip rule add from 10.77.0.1 to "$NETWORK_V4" lookup 77
  ip route add "$NETWORK_V4" via "$DEAD_NAMESERVER" dev near table 77
  ip addr add 10.77.0.9/24 dev near
  ip route replace 10.77.0.0/24 dev near src 10.77.0.9
}

remember_connections() {
  stop network-larder
  ip rule del from 10.77.0.1 to "$NETWORK_V4" lookup 77
  ip route flush table 77
  ip route replace 10.77.0.0/24 dev near src 10.77.0.1
  ip addr del 10.77.0.9/24 dev near
}

forgotten_connections() {
  local number pulls=()
  start_network_larder http://well.test:81
  # Some at once, so that some connections are idle afterwards.
  for number in 1 2 3 4; do
    timed "warm$number" &
    pulls+=($!)
  done
  wait "${pulls[@]}"
  forget_connections
  trap remember_connections EXIT
  timed first
  took "forgotten connections, first" 5
  for number in 1 2 3 4; do
    timed "next$number"
    took "forgotten connections, next" 0.3
  done
}
