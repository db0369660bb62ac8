"""Webhooks leave from here: signed as Standard Webhooks has it, so that `client.webhooks.unwrap` verifies them.

An endpoint's secret is derived from this installation's key, as links are signed: every gateway computes it, and the
database holds none. Addresses of private networks are refused, also where a public name leads there: what was looked up
and checked is what is connected to.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import logging
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import httpx

from infra.database import DatabaseError
from infra.jobs.outbox import written
from infra.jobs.webhooks import Delivery, WebhookEndpoint, Webhooks
from infra.receipts.signing import Signing
from services.jobs.working import ended, lasting

logger = logging.getLogger("ray.serve")

ANSWER_S: Final = 10.0
LOOK_S: Final = 1.0  # between two looks into the outbox
SWEEP_S: Final = 3600.0
AT_ONCE: Final = 16  # owners who are told something, of each one thing
LOOKUPS: Final = ThreadPoolExecutor(2 * AT_ONCE, thread_name_prefix="lookups")
"""Threads of their own: names are looked up at whose servers they are, which answer as late as they like."""
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""What IANA gives out; Python takes more for global."""


class Unwelcome(ValueError):
    """An address that is not to be called; one line that says why."""


def secret_of(signing: Signing, endpoint: WebhookEndpoint, back: int = 0) -> str:
    """Return an endpoint's secret as its owner is told it, or one that it had before."""
    content = signing.secret(f"webhook {endpoint.id} {endpoint.generation - back}")
    return f"whsec_{base64.b64encode(content).decode()}"


def signatures(signing: Signing, delivery: Delivery, now: float) -> str:
    """Return the header of a delivery: one signature a secret that holds."""
    endpoint = delivery.endpoint
    held = [0]
    if endpoint.both_until is not None and now < endpoint.both_until:
        held.append(1)
    signed = f"{delivery.id}.{int(now)}.{delivery.body}".encode()
    found = []
    for back in held:
        key = base64.b64decode(secret_of(signing, endpoint, back).removeprefix("whsec_"))
        digest = hmac.digest(key, signed, hashlib.sha256)
        found.append(f"v1,{base64.b64encode(digest).decode()}")
    return " ".join(found)


async def address_of(url: httpx.URL, *, private: bool) -> str:
    """Return the address that a URL is to be called at.

    Raises:
        Unwelcome: no http(s) address, one without TLS or of a private network where these are not allowed, or none.
    """
    if url.scheme not in ({"https", "http"} if private else {"https"}) or not url.raw_host:
        raise Unwelcome(f"a webhook goes to https://..., got {str(url)!r}")
    if url.userinfo:
        raise Unwelcome("a webhook's address holds no password")
    try:
        look = partial(socket.getaddrinfo, url.host, url.port or 443, type=socket.SOCK_STREAM)
        async with asyncio.timeout(ANSWER_S):
            found = await asyncio.get_running_loop().run_in_executor(LOOKUPS, look)
    except TimeoutError:
        raise Unwelcome(f"{url.host} was not found within {ANSWER_S:g} s") from None
    except (OSError, UnicodeError) as error:
        host, why = url.raw_host.decode(), getattr(error, "strerror", None) or error
        raise Unwelcome(f"{host} cannot be found: {why}") from None
    addresses = [str(one[4][0]) for one in found]
    closed = [one for one in addresses if not _is_open(ipaddress.ip_address(one))]
    if closed and not private:
        raise Unwelcome(
            f"{url.host} is {closed[0]}, of a private network: webhooks go there only where the operator allows it"
        )
    return addresses[0]


def _is_open(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether an address is one of the public internet, also the one inside of it that a relay would call."""
    inner: ipaddress.IPv4Address | None = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and address not in UNICAST:
            return False
    shown = address if inner is None else inner
    return shown.is_global and not shown.is_multicast


class Courier:
    """Tells endpoints of what the outbox holds, as long as it runs.

    Each owner is told one thing after the other and many owners at once, so that addresses that are slow keep nobody
    else's news waiting.
    """

    def __init__(self, webhooks: Webhooks, signing: Signing, *, private: bool) -> None:
        self._webhooks, self._signing = webhooks, signing
        self._private = private  # networks may be called, and without TLS
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to deliver, in the event loop that runs now."""
        self._task = self._task or asyncio.create_task(lasting(self._delivering, "the courier"))

    async def stop(self) -> None:
        """Deliver no more; what is under way is due again a minute later."""
        if self._task is not None:
            await ended(self._task)
            self._task = None

    async def _delivering(self) -> None:
        swept, busy = 0.0, dict[str, asyncio.Task[None]]()
        async with asyncio.TaskGroup() as group:
            while True:
                busy = {owner: task for owner, task in busy.items() if not task.done()}
                delivery = None
                try:
                    if time.monotonic() - swept > SWEEP_S:
                        swept = time.monotonic()
                        await asyncio.to_thread(self._webhooks.sweep)
                    if len(busy) < AT_ONCE:
                        delivery = await asyncio.to_thread(self._webhooks.claim, tuple(busy))
                except DatabaseError as error:
                    logger.warning("no webhook can be delivered: %s", error)
                if delivery is not None:
                    busy[delivery.endpoint.owner] = group.create_task(self.deliver(delivery))
                elif busy:
                    ends = asyncio.FIRST_COMPLETED
                    await asyncio.wait(busy.values(), timeout=LOOK_S, return_when=ends)
                else:
                    await asyncio.sleep(LOOK_S)

    async def deliver(self, delivery: Delivery) -> None:
        """Tell an endpoint of one event, and note what came of it."""
        try:
            why = await self._refusal(delivery)
            if why is None:
                await asyncio.to_thread(self._webhooks.delivered, delivery.id)
                return
            logger.warning("webhook %s to %s: %s", delivery.id, delivery.endpoint.id, why)
            await asyncio.to_thread(self._webhooks.failed, delivery.id, why[:500])
        except DatabaseError as error:
            logger.warning("webhook %s is told again in a minute: %s", delivery.id, error)

    async def _refusal(self, delivery: Delivery) -> str | None:
        """Return why an event was not taken; None: it was."""
        try:
            status = await _sent(self._signing, delivery, private=self._private)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return " ".join(str(error).split()) or type(error).__name__
        return None if httpx.codes.is_success(status) else f"the endpoint answered {status}"


async def tell(
    signing: Signing,
    endpoint: WebhookEndpoint,
    event: str,
    data: Mapping[str, str],
    *,
    private: bool,
) -> int:
    """Send one event to an endpoint now, past the outbox and once; return the status that it answers.

    Raises:
        Unwelcome, httpx.HTTPError: it is not to be called, or cannot be.
    """
    id, body = written(event, data, time.time())
    return await _sent(signing, Delivery(id, body, endpoint), private=private)


async def _sent(signing: Signing, delivery: Delivery, *, private: bool) -> int:
    try:
        async with asyncio.timeout(ANSWER_S):  # of all together: a head may come byte by byte
            return await _answered(signing, delivery, private=private)
    except TimeoutError:
        raise Unwelcome(f"the endpoint did not answer within {ANSWER_S:g} s") from None


async def _answered(signing: Signing, delivery: Delivery, *, private: bool) -> int:
    url = httpx.URL(delivery.endpoint.url)
    address = await address_of(url, private=private)
    now = time.time()
    headers = {
        "host": url.netloc.decode(),
        "content-type": "application/json",
        "user-agent": "atelier-webhooks",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": signatures(signing, delivery, now),
    }
    async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client:
        request = client.build_request(
            "POST",
            url.copy_with(host=address),
            content=delivery.body.encode(),
            headers=headers,
            extensions={"sni_hostname": url.host},  # the certificate is the name's
        )
        answer = await client.send(request, stream=True)  # what it says besides is not read
        await answer.aclose()
    return answer.status_code
