"""An SMTP server on loopback, by aiosmtpd, that keeps each mail as a line of JSON.

It prints its port once it listens, and ends when its standard input does.
"""

import argparse
import asyncio
import email
import email.policy
import json
import ssl
import sys
import threading

from aiosmtpd.smtp import SMTP, AuthResult, syntax

args = argparse.ArgumentParser()
args.add_argument("--mails", required=True, help="the file that mails are appended to")
args.add_argument("--tls", choices=["implicit", "starttls", "none"], required=True)
args.add_argument("--cert")
args.add_argument("--key")
args.add_argument("--user")
args.add_argument("--password")
args.add_argument("--port", type=int, default=0)
args.add_argument("--hang", choices=["greeting", "mail"], help="says nothing any more from there on")
args.add_argument("--refuse-after", type=int, default=1 << 30, help="takes so many mails, and refuses the next")
args.add_argument("--inject", action="store_true", help="says more than it may behind its answer to STARTTLS")
args.add_argument("--refuse", action="append", default=[], metavar="CODE=WORD", help="answers so to an address, or a subject, with that word")
args = args.parse_args()


def refused(text):
    for refusal in args.refuse:
        code, word = refusal.split("=", 1)
        if word in text:
            return f"{code} no {word}"
    return None


class Keeper:
    taken = 0

    async def handle_RCPT(self, server, session, envelope, address, rcpt_options):
        if answer := refused(address):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if args.hang == "mail":
            await asyncio.sleep(3600)
        if self.taken >= args.refuse_after:
            return "452 4.2.2 no room"
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        if answer := refused(parsed["subject"]):
            return answer
        self.taken += 1
        with open(args.mails, "a", encoding="utf-8") as mails:
            mail = {
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "user": (session.auth_data or b"").decode(),
                "tls": bool(session.ssl) or args.tls == "implicit",
                "hello": session.host_name,
                "headers": {name.lower(): value for name, value in parsed.items()},
                "body": parsed.get_content(),
            }
            mails.write(json.dumps(mail) + "\n")
        return "250 2.0.0 taken"


class Server(SMTP):
    async def smtp_STARTTLS(self, arg):
        if args.inject:
            # What somebody in between would put there: answers to all that is asked within TLS.
            # In one piece with it, so that it is read with it.
            async def push(status):
                more = b"250 evil\r\n" * 8 + b"250-evil\r\n250 8BITMIME\r\n" * 8
                self.transport.write(status.encode() + b"\r\n" + more)

            self.push = push
        await super().smtp_STARTTLS(arg)


def authenticator(server, session, envelope, mechanism, auth_data):
    is_right = (auth_data.login, auth_data.password) == (args.user.encode(), args.password.encode())
    # The worst that a server can do with what it was told.
    told = "" if is_right else "535 5.7.8 no: " + auth_data.password.decode()
    return AuthResult(success=is_right, handled=False, message=told or None, auth_data=auth_data.login)


def tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.cert, args.key)
    return context


async def main():
    keeper = Keeper()
    own_tls = tls() if args.tls != "none" else None

    def one():
        return Server(
            keeper,
            hostname="localhost",
            enable_SMTPUTF8=True,
            tls_context=own_tls if args.tls == "starttls" else None,
            require_starttls=args.tls == "starttls",
            authenticator=authenticator if args.user else None,
            auth_required=bool(args.user),
            auth_require_tls=args.tls == "starttls",
        )

    async def silent(reader, writer):
        await asyncio.sleep(3600)

    loop = asyncio.get_running_loop()
    implicit = own_tls if args.tls == "implicit" else None
    if args.hang == "greeting":
        server = await asyncio.start_server(silent, "127.0.0.1", args.port, ssl=implicit)
    else:
        server = await loop.create_server(one, "127.0.0.1", args.port, ssl=implicit)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True).start()
    await ended.wait()


asyncio.run(main())
