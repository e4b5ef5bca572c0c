"""A25, A26, A27: who a server is, is always verified; a token goes to that server alone; a proxy is used where it was asked for."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Pair, private
from recorded import whole
from tls_server import SmallServer

from simspool.agent.targets.http import HttpCaller
from simspool.agent.targets.mlflow_api import Api as MlflowApi
from simspool.agent.targets.port import Refused, Unreachable
from simspool.agent.targets.settings import TargetSettings, parse
from simspool.agent.targets.simvue_api import Api as SimvueApi
from simspool.sdk import Client
from simspool.sdk.errors import ConfigError
from simspool.sdk.errors import Unreachable as ClientUnreachable
from simspool.sdk.server_source import ServerSource
from simspool.sdk.tls import Tls
from simspool.sdk.way import Way
from simspool.spool import Spool

TOKEN = "a-token-that-goes-nowhere-else"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def serving(pair: Pair, *, client_ca: Path | None = None, most: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    if most is not None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = most
    return context


def by_agent(url: str, way: Way) -> None:
    """One request of the agent's."""

    async def ask() -> None:
        caller = HttpCaller(url, {"Authorization": f"Bearer {TOKEN}"}, way=way, timeout=20)
        try:
            await caller.call("GET", "/api/version")
        finally:
            await caller.close()

    asyncio.run(ask())


def by_client(url: str, way: Way) -> None:
    """One request of the SDK's."""
    ServerSource(url, TOKEN, way).metric_names("none")


CLIENTS = pytest.mark.parametrize("ask", [by_agent, by_client])


def told(ask: Callable[[str, Way], None], url: str, way: Way) -> str:
    """Return what a client says of why it does not talk."""
    with pytest.raises((Unreachable, ClientUnreachable)) as error:
        ask(url, way)
    assert TOKEN not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------------- A25: certificates


@CLIENTS
def test_a_certificate_of_a_trusted_authority_is_taken(ask: Any, authority: Authority) -> None:
    with SmallServer(context=serving(authority.issue("good", "127.0.0.1")), body=[]) as server:
        ask(server.url, Way(Tls(ca_file=str(authority.file))))
        assert server.seen[0].headers["Authorization"] == f"Bearer {TOKEN}"


@CLIENTS
@pytest.mark.parametrize(
    ("issued", "said"),
    [
        ({"hosts": ("127.0.0.1",), "since": -20, "until": -10}, "its certificate has expired"),
        ({"hosts": ("127.0.0.1",), "since": 5, "until": 10}, "its certificate is not valid yet: is this machine's clock right?"),
        ({"hosts": ("other.example.org",)}, "its certificate is for another host"),
        ({"hosts": ("127.0.0.2",)}, "its certificate is for another host"),
        ({"hosts": ()}, "its certificate is for another host"),
    ],
)
def test_a_bad_certificate_is_refused_and_says_why(ask: Any, issued: dict[str, Any], said: str, authority: Authority) -> None:
    issued = dict(issued)
    with SmallServer(context=serving(authority.issue("bad", *issued.pop("hosts"), **issued))) as server:
        assert said in told(ask, server.url, Way(Tls(ca_file=str(authority.file))))
        assert server.seen == []


@CLIENTS
def test_an_unknown_authority_is_refused_with_the_setting_that_helps(ask: Any, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other")
    with SmallServer(context=serving(authority.issue("good", "127.0.0.1"))) as server:
        assert "set ca_file (SIMSPOOL_CA_FILE)" in told(ask, server.url, Way())
        assert f"not from the authorities in {other.file}" in told(ask, server.url, Way(Tls(ca_file=str(other.file))))
        assert server.seen == []


@CLIENTS
def test_old_versions_of_tls_are_refused(ask: Any, authority: Authority) -> None:
    try:
        context = serving(authority.issue("old", "127.0.0.1"), most=ssl.TLSVersion.TLSv1_1)
    except (ssl.SSLError, ValueError):
        pytest.skip("OpenSSL here cannot speak TLS 1.1 at all")
    with SmallServer(context=context) as server:
        said = told(ask, server.url, Way(Tls(ca_file=str(authority.file))))
        assert "TLS" in said
        assert server.seen == []


@CLIENTS
def test_plain_http_at_a_port_of_https_is_named(ask: Any, authority: Authority) -> None:
    with SmallServer() as server:
        assert "does not speak TLS" in told(ask, server.url.replace("http:", "https:"), Way(Tls(ca_file=str(authority.file))))


@CLIENTS
def test_no_variable_turns_verification_off(ask: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PYTHONHTTPSVERIFY", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_NO_VERIFY", "GIT_SSL_NO_VERIFY", "SIMSPOOL_VERIFY"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with SmallServer(context=serving(authority.issue("good", "127.0.0.1"))) as server:
        assert "its certificate is not from" in told(ask, server.url, Way())
        with SmallServer(context=serving(authority.issue("too", "127.0.0.1")), body=[]) as good:
            ask(good.url, Way(Tls(ca_file=str(authority.file))))
    assert not (tmp_path / "keys").exists()  # nor are session keys written where a variable says


# ---------------------------------------------------------------------- client certificates


def test_a_client_certificate_is_shown_to_the_server_and_to_nobody_else(authority: Authority) -> None:
    mine = authority.issue("mine")
    way = Way(Tls(str(authority.file), str(mine.cert), str(mine.key)))
    with SmallServer(context=serving(authority.issue("server", "127.0.0.1"), client_ca=authority.file), body=[]) as server:
        by_agent(server.url, way)
        by_client(server.url, way)
        assert len(server.seen) == 2

        async def elsewhere() -> None:
            caller = HttpCaller("https://127.0.0.1:9", way=way)
            try:
                await caller.call("PUT", f"{server.url}/signed?secret=1", body=b"x")  # as servers sign them for uploads
            finally:
                await caller.close()

        with pytest.raises((Refused, Unreachable), match="asks for a certificate of ours") as error:
            asyncio.run(elsewhere())
        assert "secret" not in str(error.value)


def test_a_missing_client_certificate_is_named(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other").issue("mine")
    with SmallServer(context=serving(authority.issue("server", "127.0.0.1"), client_ca=authority.file)) as server:
        # a refusal where the alert arrives; a server that closes at once may lose it on the way
        with pytest.raises((Refused, Unreachable), match="set client_cert and client_key"):
            by_agent(server.url, Way(Tls(ca_file=str(authority.file))))
        with pytest.raises(ClientUnreachable, match="set client_cert and client_key"):
            by_client(server.url, Way(Tls(ca_file=str(authority.file))))
        with pytest.raises((Refused, Unreachable), match="does not accept our certificate"):
            by_agent(server.url, Way(Tls(str(authority.file), str(other.cert), str(other.key))))
        assert server.seen == []


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    junk = private(tmp_path / "junk.pem", "no certificate\n")
    ca = str(authority.file)
    for tls, said in (
        (Tls("/nowhere/ca.pem"), "ca_file /nowhere/ca.pem cannot be read"),
        (Tls(str(junk)), f"ca_file {junk} has no certificates"),
        (Tls(ca, "/nowhere/c.pem"), "client_cert /nowhere/c.pem cannot be read"),
        (Tls(ca, str(one.cert), "/nowhere/k.pem"), "client_key /nowhere/k.pem cannot be read"),
        (Tls(ca, str(one.cert), str(two.key)), f"client_key {two.key} does not belong to client_cert {one.cert}"),
        (Tls(ca, str(one.cert)), f"client_cert {one.cert} (with the key in it"),
        (Tls(ca, None, str(one.key)), "is given without client_cert"),
    ):
        with pytest.raises(Refused) as error:
            by_agent("https://127.0.0.1:9", Way(tls))
        assert said in str(error.value)
        with pytest.raises(ConfigError) as wrong:
            by_client("https://127.0.0.1:9", Way(tls))
        assert said in str(wrong.value)


def test_an_encrypted_key_is_refused_and_asks_nobody(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("one")
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = private(tmp_path / "locked.key", key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"words")
    ))  # fmt: skip
    with pytest.raises(Refused, match="unencrypted key"):
        by_agent("https://127.0.0.1:9", Way(Tls(None, str(pair.cert), str(locked))))


def test_a_renewed_certificate_counts_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    wrong, right = Authority(tmp_path / "other", "other").issue("mine"), authority.issue("mine")
    mine = Pair(tmp_path / "now.crt", tmp_path / "now.key")
    for source, target in zip(wrong, mine, strict=True):
        private(target, source.read_bytes())

    async def ask(server: SmallServer) -> None:
        caller = HttpCaller(server.url, way=Way(Tls(str(authority.file), str(mine.cert), str(mine.key))))
        try:
            with pytest.raises((Refused, Unreachable), match="does not accept our certificate"):
                await caller.call("GET", "/")
            for source, target in zip(right, mine, strict=True):
                private(target, source.read_bytes())
            assert (await caller.call("GET", "/")).status == 200
        finally:
            await caller.close()

    with SmallServer(context=serving(authority.issue("server", "127.0.0.1"), client_ca=authority.file)) as server:
        asyncio.run(ask(server))


# ---------------------------------------------------------------------- A26: redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status: int, tmp_path: Path) -> None:
    """By every client that has a token: the agent's three kinds, and the SDK's."""

    async def agents(url: str) -> None:
        simvue = SimvueApi(url, TOKEN, None, 20.0)
        mlflow = MlflowApi(url, "experiment", TOKEN, None)
        plain = HttpCaller(url, {"Authorization": f"Bearer {TOKEN}"})
        try:
            for call in (lambda: simvue.call("GET", "/runs"), mlflow.connect, lambda: plain.call("GET", "/api/simspool/v1/server")):
                with pytest.raises(Unreachable, match="redirect"):
                    await call()
        finally:
            for one in (simvue, mlflow, plain):
                await one.close()

    with SmallServer() as thief, SmallServer(status, {"Location": f"{thief.url}/login"}) as server:
        asyncio.run(agents(server.url))
        with pytest.raises(Exception, match="redirect"):
            by_client(server.url, Way())
        assert len(server.seen) == 4
        assert thief.seen == []


# ---------------------------------------------------------------------- A27: proxies


@CLIENTS
def test_proxies_of_the_environment_are_not_used(ask: Any, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    context = serving(authority.issue("s", "127.0.0.1"))
    with SmallServer() as proxy, SmallServer(context=context, body=[]) as server, SmallServer(body=[]) as plain:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        ask(server.url, Way(Tls(ca_file=str(authority.file))))
        ask(plain.url, Way())
        assert proxy.seen == []
        assert len(server.seen) == len(plain.seen) == 1


@CLIENTS
def test_a_proxy_that_was_asked_for_sees_no_token(ask: Any, authority: Authority, tmp_path: Path) -> None:
    auth = private(tmp_path / "auth", "user:proxy-password\n")
    header = "Basic " + base64.b64encode(b"user:proxy-password").decode()
    with SmallServer(auth=header) as proxy, SmallServer(context=serving(authority.issue("s", "127.0.0.1")), body=[]) as server:
        ask(server.url, Way(Tls(ca_file=str(authority.file)), proxy.url, str(auth)))
        assert [(r.method, r.path) for r in proxy.seen] == [("CONNECT", f"127.0.0.1:{server.port}")]
        assert TOKEN not in str(proxy.seen[0].headers)
        assert "Proxy-Authorization" not in server.seen[0].headers
        wrong = private(tmp_path / "wrong", "user:proxy-passwort\n")
        said = told(ask, server.url, Way(Tls(ca_file=str(authority.file)), proxy.url, str(wrong)))
        assert "407" in said
        assert "passwort" not in said


# ---------------------------------------------------------------------- settings


def test_settings_of_a_target_and_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simspool.sdk.config import load_config

    made = parse("lab", {"kind": "mlflow", "url": "https://h", "ca_file": "~/ca.pem", "client_cert": "/c", "client_key": "/k"}, "spool")
    assert isinstance(made, TargetSettings)
    assert made.way == Way(Tls(os.path.expanduser("~/ca.pem"), "/c", "/k"))
    (tmp_path / "simspool.toml").write_text('[server]\nurl = "https://h"\nca_file = "ca.pem"\nproxy = "http://proxy:3128"\n')
    monkeypatch.chdir(tmp_path)
    assert load_config().server_way == Way(Tls(str(tmp_path / "ca.pem")), "http://proxy:3128")
    monkeypatch.setenv("SIMSPOOL_CA_FILE", "/site/ca.pem")
    assert load_config().server_way.tls.ca_file == "/site/ca.pem"
    for table, said in (
        ({"proxy": "proxy:3128"}, "must begin with http"),
        ({"proxy": "http://user:secret@proxy"}, "has a user or password"),
        ({"proxy_auth_file": "/x"}, "without proxy"),
        ({"verify": False}, "there is no setting 'verify'"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            parse("lab", {"kind": "mlflow", "url": "https://h", **table}, "spool")
        assert "secret" not in str(error.value)


# ---------------------------------------------------------------------- the real server


class Serving:
    """`agent serve --cert` in a process of its own."""

    def __init__(self, data: Path, *options: object) -> None:
        self.data = data
        self.log = Path(f"{data}.log")
        command = [sys.executable, "-m", "simspool.agent", "serve", "--data", str(data), "--port", "0", *map(str, options)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self.wait("serving https://")
        self.url = (data / "url").read_text().strip()
        self.token = (data / "token").read_text().strip()

    def wait(self, text: str) -> None:
        """Wait until it has said something."""
        deadline = time.monotonic() + 40
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> None:
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[Serving]:
    pair = authority.issue("served", "127.0.0.1", "localhost")
    running = Serving(tmp_path / "data", "--cert", pair.cert, "--key", pair.key, "--client-ca", authority.file)
    yield running
    running.end()


def agent(spool: Spool, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simspool.agent", *words, "--spool", spool.path], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, **environ},
    )  # fmt: skip


def test_a_whole_way_over_https_with_client_certificates(server: Serving, spool: Spool, authority: Authority, tmp_path: Path) -> None:
    run = whole(spool)
    mine = authority.issue("mine")
    there = {"SIMSPOOL_URL": server.url, "SIMSPOOL_TOKEN": server.token}
    done = agent(spool, "sync", **there)
    assert (done.returncode, "set ca_file (SIMSPOOL_CA_FILE)" in done.stderr) == (3, True), done.stderr
    there["SIMSPOOL_CA_FILE"] = str(authority.file)
    done = agent(spool, "sync", **there)
    assert (done.returncode in {3, 4}, "set client_cert and client_key" in done.stderr) == (True, True), done.stderr
    there |= {"SIMSPOOL_CLIENT_CERT": str(mine.cert), "SIMSPOOL_CLIENT_KEY": str(mine.key)}
    done = agent(spool, "sync", **there)
    assert done.returncode == 0, done.stderr
    assert server.token not in server.log.read_text()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in there.items():
            patch.setenv(name, value)
        assert Client().get_run(run)["status"] == "completed"
    (tmp_path / "simspool.toml").write_text(
        f'[server]\nurl = "{server.url}"\ntoken_file = "data/token"\nca_file = "{authority.file}"\n'
        f'client_cert = "{mine.cert}"\nclient_key = "{mine.key}"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "simspool.agent", "target", "test", "server", "--spool", spool.path], capture_output=True, text=True,
        timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_server_reads_a_renewed_certificate_at_sighup(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = Authority(tmp_path / "a", "first"), Authority(tmp_path / "b", "second")
    pair = Pair(tmp_path / "s.crt", tmp_path / "s.key")
    for source, target in zip(first.issue("s", "127.0.0.1"), pair, strict=True):
        private(target, source.read_bytes())
    server = Serving(tmp_path / "data", "--cert", pair.cert, "--key", pair.key)
    try:
        with pytest.raises(Refused, match="token"):
            by_agent(server.url, Way(Tls(str(first.file))))
        for source, target in zip(second.issue("s", "127.0.0.1"), pair, strict=True):
            private(target, source.read_bytes())
        server.process.send_signal(signal.SIGHUP)
        server.wait("the certificate was read again")
        with pytest.raises(Refused, match="token"):
            by_agent(server.url, Way(Tls(str(second.file))))
        pair.key.write_text("broken")
        server.process.send_signal(signal.SIGHUP)
        server.wait("the certificate is left as it is")
        with pytest.raises(Refused, match="token"):
            by_agent(server.url, Way(Tls(str(second.file))))
    finally:
        server.end()


def test_serve_says_what_is_wrong_with_its_files(authority: Authority, tmp_path: Path) -> None:
    pair, other = authority.issue("one", "127.0.0.1"), authority.issue("two", "127.0.0.1")
    for words, code, said in (
        (["--key", pair.key], 2, "go with --cert"),
        (["--cert", pair.cert, "--key", other.key], 1, "does not belong to --cert"),
        (["--cert", tmp_path / "none", "--key", other.key], 1, "cannot be read"),
        (["--cert", pair.cert, "--key", pair.key, "--client-ca", pair.key], 1, "has no certificates"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "simspool.agent", "serve", "--data", str(tmp_path / "d"), "--port", "0", *map(str, words)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
