"""An S3 server on loopback, by moto, with a bucket `vault`. It keeps all in memory.

It prints a line of JSON once it listens: its port, and the access keys of `--user`. It ends when its standard input does. Each line there
sets a fault, until the next: `well`, `late` (fails a part of the writes behind having done them), `early` (before), `dear` (too much to do).
"""

import argparse
import json
import os
import random
import sys
import threading

args = argparse.ArgumentParser()
args.add_argument("--cert")
args.add_argument("--key")
args.add_argument("--no-if-match", action="store_true", help="does not look at If-Match")
args.add_argument("--no-if-none-match", action="store_true", help="does not look at If-None-Match")
args.add_argument("--backwards", action="store_true", help="lists the last names first")
args.add_argument("--user", metavar="POLICY", help="asks who it is, and knows one user, who may do what stands in this file of JSON")
args = args.parse_args()

# Requests that are not asked who they are from: those that set it up, here.
SET_UP = 5
if args.user:
    os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = str(SET_UP)

import boto3  # noqa: E402
from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: E402
from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: E402

dispatch = DomainDispatcherApplication(create_backend_app)
alone = threading.Lock()
fault = "well"


def moto(environ, start_response):
    """One request after the other: moto lists what another one changes meanwhile."""
    with alone:
        return [b"".join(dispatch(environ, start_response))]


def answer(environ, start_response):
    if args.no_if_match:
        environ.pop("HTTP_IF_MATCH", None)
    if args.no_if_none_match:
        environ.pop("HTTP_IF_NONE_MATCH", None)
    is_write = environ["REQUEST_METHOD"] == "PUT"
    is_hit = fault != "well" and is_write and random.random() < 0.3
    if is_hit and fault == "late":
        b"".join(moto(environ, lambda *said: None))
    if is_hit:
        status, code = ("503 Slow Down", "SlowDown") if fault == "dear" else ("500 Internal Server Error", "InternalError")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Planted.</Message></Error>".encode()
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]
    if args.backwards and "list-type=2" in environ["QUERY_STRING"]:
        return turned(environ, start_response)
    return moto(environ, start_response)


def turned(environ, start_response):
    said = []
    body = b"".join(moto(environ, lambda *parts: said.extend(parts[:2]))).decode()
    head, *objects = body.split("<Contents>")
    if len(objects) > 1:
        last, tail = objects[-1].split("</Contents>")
        objects = [last + "</Contents>", *reversed(objects[:-1])]
        body = "<Contents>".join([head, *objects]) + tail
    body = body.encode()
    start_response(said[0], [(name, value) for name, value in said[1] if name.lower() != "content-length"] + [("Content-Length", str(len(body)))])
    return [body]


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *_):
        pass


tls = (args.cert, args.key) if args.cert else None
server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=Quiet, ssl_context=tls)
threading.Thread(target=server.serve_forever, daemon=True).start()

said = {"port": server.server_port}
at = {
    "endpoint_url": f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}",
    "region_name": "us-east-1",
    "aws_access_key_id": "setup",
    "aws_secret_access_key": "setup",
    "verify": False,
}
boto3.client("s3", **at).create_bucket(Bucket="vault")
if args.user:
    iam = boto3.client("iam", **at)
    iam.create_user(UserName="keyleash")
    key = iam.create_access_key(UserName="keyleash")["AccessKey"]
    said |= {"key_id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}
    with open(args.user) as policy:
        iam.put_user_policy(UserName="keyleash", PolicyName="own", PolicyDocument=policy.read())
    # The last of those that are not asked.
    iam.list_access_keys(UserName="keyleash")
print(json.dumps(said), flush=True)
for line in sys.stdin:
    fault = line.strip()
    print(fault, flush=True)
