# SPDX-License-Identifier: Apache-2.0
"""A device made of the referee's parts that asks for its config as stock EVE does: a connection per request, no Prefer
header, the known hash, and again at once when an answer has come. Every answer is verified as the referee does it.

Says `asks` before each request and `got EPOCH_MICROSECONDS` when a new config has been verified; ends with its input.
"""
import argparse
import sys
import threading
import time

import device


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("controller", "root-cert", "onboard-cert", "onboard-key", "serial"):
        p.add_argument("--" + name, required=True)
    a = p.parse_args()
    a.identity, a.serial2, a.adopt_cmd, a.attest = None, None, "", "none"
    client = device.Client(a)
    node = client.main
    client.ready(node)
    known = client.config(node).configHash
    threading.Thread(target=watch, args=(client, node, known), daemon=True).start()
    sys.stdin.read()


def watch(client, node, known):
    while True:
        print("asks", flush=True)
        answer = poll(client, node, known)
        if answer.status == 304:
            continue
        if answer.status != 200:
            print(f"failed: /config answered {answer}", flush=True)
            return
        message = client.unseal(answer, "config.ConfigResponse")
        if message.config.id.uuid != node.uuid:
            print(f"failed: the config is that of {message.config.id.uuid}", flush=True)
            return
        if message.configHash != known:
            known = message.configHash
            print(f"got {time.time_ns() // 1000}", flush=True)


# EVE's timer.send.timeout is 120 s; the referee's own 30 s are shorter than a held answer
TIMEOUT_S = 120


def poll(client, node, known):
    request = device.S("config.ConfigRequest")(configHash=known, integrity_token=node.token)
    body = client.seal(node, request.SerializeToString())
    return client.http("POST", f"/id/{node.uuid}/config", body, node, timeout=TIMEOUT_S)


if __name__ == "__main__":
    main()
