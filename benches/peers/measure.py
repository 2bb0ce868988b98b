"""Measures the mirrors that `run` has started and judges larder: `measure.py FACTS`.

Every round visits every peer once, so that the noise of the machine falls on all of them; figures are medians over rounds.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict

TICK = 1 / os.sysconf("SC_CLK_TCK")
MB = 1e6
GB = 1e9
COLD_CLIENTS = 16
# figure, peer, least ratio larder : peer
BARS = [
    ("manifests_per_s_by_tag", "registry", 50.0),
    ("manifests_per_s_by_digest", "registry", 50.0),
    ("warm_mb_per_s_1_client", "nginx-static", 0.7),
    ("warm_mb_per_s_4_clients", "nginx-static", 0.7),
]


class Broken(Exception):
    """Something did not work, so there is nothing to compare."""


def main(path):
    facts, peers = read_facts(path)
    figures = Figures()
    warm_up(facts, peers)
    for _ in range(int(facts["rounds"])):
        measure_manifests(facts, peers, figures)
        measure_small_blob(facts, peers, figures)
        measure_warm_blob(facts, peers, figures)
    for number in range(int(facts["cold_rounds"])):
        measure_cold_blob(facts, peers, figures, number)
    figures.print_lines()
    figures.print_table(list(peers))
    return judge(figures, speed_counts=facts["speed_counts"] == "yes")


def read_facts(path):
    facts, peers = {}, {}
    for line in open(path):
        key, *values = line.split()
        if key.startswith("peer."):
            peers[key.removeprefix("peer.")] = Peer(*map(int, values))
        else:
            facts[key] = values[0]
    order = ["larder", "before", "nginx-static", "nginx-cache", "registry"]
    return facts, {name: peers[name] for name in order if name in peers}


class Peer:
    def __init__(self, port, pid):
        self.base = f"http://127.0.0.1:{port}/v2/library"
        self.pid = pid

    def cpu_seconds(self):
        """User and system time of the process and of its children (nginx's workers)."""
        total = 0
        for pid in [str(self.pid), *children(self.pid)]:
            # The command's name may hold spaces; it ends with the last parenthesis.
            fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total * TICK


def children(pid):
    return open(f"/proc/{pid}/task/{pid}/children").read().split()


class Figures:
    def __init__(self):
        self.samples = defaultdict(list)

    def add(self, figure, peer, value):
        self.samples[figure, peer].append(value)

    def median(self, figure, peer):
        samples = self.samples.get((figure, peer))
        return statistics.median(samples) if samples else None

    def names(self):
        return list(dict.fromkeys(figure for figure, _ in self.samples))

    def print_lines(self):
        for (figure, peer), samples in self.samples.items():
            print("RESULT", peer, figure, f"{self.median(figure, peer):.6g}",
                  "samples", *(f"{sample:.6g}" for sample in samples))

    def print_table(self, peers):
        others = [peer for peer in peers if peer != "larder"]
        print("\n| figure |", " | ".join(peers), "|", " | ".join(f"larder : {peer}" for peer in others), "|")
        print("| --- |" + " ---: |" * (len(peers) + len(others)))
        for figure in self.names():
            values = [self.median(figure, peer) for peer in peers]
            ratios = [self.ratio(figure, peer) for peer in others]
            print(f"| {figure} |", " | ".join([*map(short, values), *map(short, ratios)]), "|")

    def ratio(self, figure, peer):
        mine, other = self.median(figure, "larder"), self.median(figure, peer)
        return mine / other if mine is not None and other else None


def short(value):
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def warm_up(facts, peers):
    """As a client would: the manifest, then what it names; twice, for caches that admit on the second request."""
    for name, peer in peers.items():
        for _ in range(2):
            fetch_manifest(peer, facts, "warm/manifests/latest")
            fetch_manifest(peer, facts, f"warm/manifests/{facts['warm_manifest']}")
            for blob in ("warm_blob", "small_blob"):
                fetch_together(f"{peer.base}/warm/blobs/{facts[blob]}", 1)


def measure_manifests(facts, peers, figures):
    for kind, reference in [("tag", "latest"), ("digest", facts["warm_manifest"])]:
        for threads in (1, 2):
            for name, peer in peers.items():
                url = f"{peer.base}/warm/manifests/{reference}"
                suffix = "" if threads == 2 else "_1_thread"
                figures.add(f"manifests_per_s_by_{kind}{suffix}", name, requests_per_second(facts, url, threads))


def measure_small_blob(facts, peers, figures):
    """An image's config: some hundred bytes, which every pull asks for."""
    for name, peer in peers.items():
        cpu, begin = peer.cpu_seconds(), time.monotonic()
        rate = requests_per_second(facts, f"{peer.base}/warm/blobs/{facts['small_blob']}", 2)
        requests = rate * (time.monotonic() - begin)
        figures.add("small_blobs_per_s", name, rate)
        figures.add("small_blobs_cpu_us_each", name, (peer.cpu_seconds() - cpu) / requests * 1e6)


def requests_per_second(facts, url, threads):
    out = run(["wrk", f"-t{threads}", "-c32", f"-d{facts['wrk_seconds']}s", "-H", f"Accept: {facts['accept']}", url])
    if "Non-2xx" in out or "Socket errors" in out:
        raise Broken(f"wrk on {url} had errors:\n{out}")
    return float(re.search(r"Requests/sec:\s*([\d.]+)", out).group(1))


def measure_warm_blob(facts, peers, figures):
    for clients in (1, 4):
        for name, peer in peers.items():
            cpu = peer.cpu_seconds()
            begin = time.monotonic()
            # As many bytes with one client as with four: CPU time is told in hundredths of a second.
            total = sum(
                download.bytes
                for _ in range(4 // clients)
                for download in fetch_together(f"{peer.base}/warm/blobs/{facts['warm_blob']}", clients)
            )
            seconds = time.monotonic() - begin
            plural = "client" if clients == 1 else "clients"
            figures.add(f"warm_mb_per_s_{clients}_{plural}", name, total / MB / seconds)
            figures.add(f"warm_cpu_s_per_gb_{clients}_{plural}", name, (peer.cpu_seconds() - cpu) / (total / GB))


def measure_cold_blob(facts, peers, figures, number):
    for name, peer in peers.items():
        if name == "nginx-static":
            continue
        fetch_manifest(peer, facts, f"cold{number}/manifests/latest")
        digest = facts[f"cold{number}"]
        before = upstream_gets(facts, digest)
        begin = time.monotonic()
        downloads = fetch_together(f"{peer.base}/cold{number}/blobs/{digest}", COLD_CLIENTS)
        figures.add("cold_wall_s_16_clients", name, time.monotonic() - begin)
        figures.add("cold_last_first_byte_s", name, max(download.first_byte_s for download in downloads))
        figures.add("cold_upstream_gets", name, settled_gets(facts, digest) - before)


def settled_gets(facts, digest):
    """A request is in the log when it has ended, which may be a moment after the clients'."""
    count = upstream_gets(facts, digest)
    for _ in range(20):
        time.sleep(0.5)
        before, count = count, upstream_gets(facts, digest)
        if count == before and count > 0:
            break
    return count


def upstream_gets(facts, digest):
    return len(re.findall(rf'"GET \S+/blobs/{digest} ', open(facts["upstream_log"]).read()))


class Download:
    def __init__(self, line):
        status, size, first_byte = line.split()
        if status != "200":
            raise Broken(f"a download was answered {status}")
        self.bytes = int(size)
        self.first_byte_s = float(first_byte)


def fetch_together(url, clients):
    """Every client is a curl of its own; all are waited for; a short or failed download ends the measurement."""
    words = "%{http_code} %{size_download} %{time_starttransfer}"
    command = ["curl", "-sS", "--max-time", "300", "-o", "/dev/null", "-w", words, url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise Broken(f"a download of {url} failed")
    downloads = [Download(output) for output in outputs]
    if len({download.bytes for download in downloads}) != 1:
        raise Broken(f"downloads of {url} differ in length")
    return downloads


def fetch_manifest(peer, facts, path):
    run(["curl", "-sSf", "--max-time", "60", "-o", "/dev/null", "-H", f"Accept: {facts['accept']}", f"{peer.base}/{path}"])


def run(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def judge(figures, speed_counts):
    print()
    good = True
    for figure, peer, least in BARS:
        ratio = figures.ratio(figure, peer)
        reached = say(ratio >= least, f"{figure}: larder : {peer} = {ratio:.2f}, at least {least} wanted")
        good &= reached or not speed_counts
    gets = figures.samples["cold_upstream_gets", "larder"]
    good &= say(set(gets) == {1}, f"cold_upstream_gets: larder made {gets}, 1 each wanted")
    return good


def say(good, text):
    print("PASS" if good else "FAIL", text)
    return good


if __name__ == "__main__":
    try:
        sys.exit(0 if main(sys.argv[1]) else 1)
    except (Broken, OSError, subprocess.CalledProcessError) as error:
        print(f"broken: {error}", file=sys.stderr)
        sys.exit(2)
