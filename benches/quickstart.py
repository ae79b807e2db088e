#!/usr/bin/env python3
"""Measures the quickstart as a process: what an outsider sees. Needs python3, redis-server and a release build.

    cargo build --release --example quickstart --features full && python3 benches/quickstart.py
"""

import http.client
import os
import signal
import socket
import subprocess
import threading
import time

PROGRAM = os.path.join(os.path.dirname(__file__), "..", "target", "release", "examples", "quickstart")


class Server:
    def __init__(self, **variables):
        environment = {"PATH": os.environ["PATH"], "ADDR": "127.0.0.1:0", "RATE_LIMIT": "1000000", "RUST_LOG": "error"}
        self.process = subprocess.Popen(
            [PROGRAM], env=environment | variables, stdout=subprocess.PIPE, text=True
        )
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def client(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def get(connection, path):
    started = time.perf_counter()
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    return response.status, (time.perf_counter() - started) * 1e3, body


def at(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def lag_buckets(connection):
    lines = get(connection, "/metrics")[2].decode().splitlines()
    lines = [line for line in lines if line.startswith("event_loop_lag_seconds_bucket")]
    return {line.split('le="')[1].split('"')[0]: int(line.rsplit(" ", 1)[1]) for line in lines}


def miss_and_hits():
    with Server() as server:
        client = server.client()
        first = [get(client, f"/products/{n}")[1] for n in range(20)]
        again = [get(client, f"/products/{n % 20}")[1] for n in range(2000)]
        print(f"miss (a 50 ms handler): median {at(first, 0.5):.1f} ms")
        print(f"hit: median {at(again, 0.5):.2f} ms, p99 {at(again, 0.99):.2f} ms, slowest {max(again):.2f} ms")


def primes_and_probe(seconds=10):
    with Server() as server:
        probe, stop, jobs = server.client(), time.perf_counter() + seconds, []

        def work(index):
            client, n = server.client(), 50_000_000 - index
            while time.perf_counter() < stop:
                jobs.append(get(client, f"/primes/{n}")[0])
                n -= 8

        before = lag_buckets(probe)
        workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for worker in workers:
            worker.start()
        times = []
        while time.perf_counter() < stop:
            times.append(get(probe, "/healthz")[1])
            time.sleep(0.005)
        for worker in workers:
            worker.join()
        after = lag_buckets(probe)
        samples = after["+Inf"] - before.get("+Inf", 0)
        below = after["0.02"] - before.get("0.02", 0)
        print(f"eight clients of /primes/(near 50 million), {len(jobs)} served, statuses {sorted(set(jobs))}:")
        print(f"  /healthz: median {at(times, 0.5):.2f} ms, p99 {at(times, 0.99):.2f} ms, slowest {max(times):.2f} ms")
        print(f"  event_loop_lag_seconds: {below} of {samples} samples at most 20 ms")


def redis(port):
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    for _ in range(1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.005)
    raise SystemExit("redis-server did not start")


def redis_faults():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server_process = redis(port)
    results, phase, done = [], ["up"], threading.Event()
    with Server(REDIS_URL=f"redis://127.0.0.1:{port}") as server:
        def work(index):
            client, n = server.client(), index
            while not done.is_set():
                n += 8
                status, took, _ = get(client, f"/products/{n % 400}")
                results.append((phase[0], status, took))
                time.sleep(0.02)

        workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for worker in workers:
            worker.start()
        time.sleep(2)
        phase[0] = "frozen"
        server_process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        phase[0] = "continued"
        server_process.send_signal(signal.SIGCONT)
        time.sleep(2)
        phase[0] = "killed"
        server_process.kill()
        server_process.wait()
        time.sleep(3)
        phase[0] = "restarted"
        server_process = redis(port)
        time.sleep(3)
        done.set()
        for worker in workers:
            worker.join()
        metrics = get(server.client(), "/metrics")[2].decode().splitlines()
        breaker = [line for line in metrics if line.startswith("redis_breaker_open ")]
    server_process.kill()
    server_process.wait()
    print("Redis under eight clients of /products (a 50 ms handler, every answer counted):")
    for name in ["up", "frozen", "continued", "killed", "restarted"]:
        times = [took for phase, _, took in results if phase == name]
        statuses = sorted({status for phase, status, _ in results if phase == name})
        print(f"  {name}: {len(times)} answers, statuses {statuses}, slowest {max(times):.1f} ms")
    print(f"  at the end: {breaker[0] if breaker else 'no breaker was ever open'}")


if __name__ == "__main__":
    print(f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores")
    miss_and_hits()
    primes_and_probe()
    redis_faults()
