"""A rolling deploy: the new provider joins, the old one drains, and no call is lost."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from iii_zmq import Worker


def start(version: str) -> Worker:
    worker = Worker(f"greeter-{version}")
    worker.register("greeter::hello", lambda name: f"hello from {version}")
    worker.start()
    return worker


def deploy(old: Worker) -> Worker:
    new = start("v2")  # from now on both get calls
    old.drain()  # takes no new calls, finishes the running ones, leaves
    return new


old = start("v1")
with Worker("caller") as caller, ThreadPoolExecutor() as pool:
    answers = Counter(caller.call("greeter::hello", "you", timeout=2.0) for _ in range(100))
    deploying = pool.submit(deploy, old)
    while not deploying.done():
        answers[caller.call("greeter::hello", "you", timeout=2.0)] += 1
    for _ in range(100):
        answers[caller.call("greeter::hello", "you", timeout=2.0)] += 1

deploying.result().close()
for answer, count in answers.items():
    print(f"{answer}: {count} calls")
print("none was lost")
