"""The page behind a real nginx and a real Caddy, set up as docs/labeling.md says."""

import http.client
import itertools
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.labeling.test_pages import rows
from toolkit.labeling.addresses import host_names, listen
from toolkit.labeling.admin_pages import AdminPages
from toolkit.labeling.guard import Guard, PageSettings
from toolkit.labeling.serving import server_of
from toolkit.labeling.store import Settings, Store

pytestmark = pytest.mark.slow  # starts servers
NAME = "label.example.org"
BASE = f"https://{NAME}"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
OURS = FORM | {"Origin": BASE}

# What a visitor may send to be taken for somebody else.
SPOOFED = {
    "X-Forwarded-For": "127.0.0.99, 127.0.0.98",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Port": "80",
    "X-Real-IP": "127.0.0.99",
    "Forwarded": "for=127.0.0.99;host=evil.example;proto=http",
}


def documented(root: Path, language: str) -> str:
    """The configuration that the document shows in its one block of this language."""
    text = (root / "docs" / "labeling.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(block)


def replaced(text: str, **by: str) -> str:
    """The text in which each of these stands for what ``THERE`` has of its name, and must have."""
    for name, new in by.items():
        assert THERE[name] in text, f"the document's configuration lacks {THERE[name]!r}"
        text = text.replace(THERE[name], new)
    return text


THERE = {
    "page": "127.0.0.1:8000",
    "https": "listen 443 ssl;",
    "http": "listen 80;",
    "certificate": f"/etc/letsencrypt/live/{NAME}/fullchain.pem",
    "key": f"/etc/letsencrypt/live/{NAME}/privkey.pem",
    "log": "/var/log/nginx/label.log",
    "site": f"{NAME} {{\n",
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def nginx(root: Path, folder: Path, page: int, https: int, http: int) -> list[str]:
    """Write nginx's files; return the command."""
    site = replaced(
        documented(root, "nginx"),
        page=f"127.0.0.1:{page}",
        https=f"listen 127.0.0.1:{https} ssl;",
        http=f"listen 127.0.0.1:{http};",
        certificate=str(folder / "cert.pem"),
        key=str(folder / "key.pem"),
        log=str(folder / "site.log"),
    )
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\n"
        f"error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log {folder}/access.log;\n{paths}{site}}}\n"
    )
    words = ["-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    return ["nginx", *words]


def caddy(root: Path, folder: Path, page: int, https: int, http: int) -> list[str]:
    """Write Caddy's file, with a certificate of our own; return the command."""
    site = replaced(
        documented(root, "caddy"),
        page=f"127.0.0.1:{page}",
        site=f"{NAME} {{\n\ttls {folder}/cert.pem {folder}/key.pem\n\tbind 127.0.0.1\n",
    )
    options = f"{{\nadmin off\nhttp_port {http}\nhttps_port {https}\nstorage file_system {folder}\n"
    (folder / "Caddyfile").write_text(site.replace("{\n", options, 1))
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def fields(self) -> dict[str, str]:
        """The hidden fields of a page's forms."""
        return dict(re.findall(r'name="(csrf|form|after)" value="([^"]*)"', self.body))


class Visitor:
    """A person with a browser's cookies, who comes from an address of their own."""

    def __init__(self, behind: "Behind", source: str = "127.0.0.1") -> None:
        self.behind, self.source, self.cookie, self.cookies = behind, source, "", ""
        behind.visitors.append(self)
        self.connection: http.client.HTTPConnection | None = None

    def ask(
        self, method: str, path: str, fields: dict[str, str] | bytes | None = None, **headers: str
    ) -> Answer:
        """Send a request to the proxy, and note the cookie of its answer."""
        body = urllib.parse.urlencode(fields).encode() if isinstance(fields, dict) else fields
        given = {"Host": NAME} | {name.replace("_", "-"): v for name, v in headers.items()}
        if self.cookie:
            given.setdefault("Cookie", self.cookie)
        if self.connection is None:
            raw = socket.create_connection(
                ("127.0.0.1", self.behind.https), 10, source_address=(self.source, 0)
            )
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connection = http.client.HTTPConnection(NAME)
            self.connection.sock = self.behind.context.wrap_socket(raw, server_hostname=NAME)
        self.connection.request(method, path, body, given)
        response = self.connection.getresponse()
        answer = Answer(response.status, dict(response.getheaders()), response.read().decode())
        if response.will_close:
            self.close()
        told = {name.lower(): value for name, value in answer.headers.items()}
        if "set-cookie" in told:
            self.cookies = told["set-cookie"]
            self.cookie = self.cookies.split(";")[0]
        answer.headers = told
        return answer

    def join(self, token: str, **headers: str) -> "Visitor":
        """Open an invite link and press its button."""
        opened = self.ask("GET", f"/invite/{token}", **headers)
        assert opened.status == 200 and "Welcome" in opened.body
        joined = self.ask("POST", "/invite", {"token": token}, **OURS | headers)
        assert (joined.status, joined.headers["location"]) == (303, "/")
        return self

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class Behind:
    """The page's server in a thread, and a proxy in front of it."""

    def __init__(self, root: Path, folder: Path, proxy: str) -> None:
        self.folder = folder
        self.visitors: list[Visitor] = []
        subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-nodes", "-days", "2", *subject, "-keyout", folder / "key.pem",
             "-out", folder / "cert.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
        self.context = ssl.create_default_context(cafile=str(folder / "cert.pem"))

        self.store = Store(folder / "labels.sqlite", Settings(overlap=0.0, repeats=0.0))
        self.store.add_items(rows(20))
        listening = listen("127.0.0.1", 0)
        settings = PageSettings(host_names(listening, [NAME]), https=True, rate=1e6, burst=10**6)
        app = AdminPages(self.store, settings).app()
        assert isinstance(app, Guard)
        self.guard = app
        self.server = server_of(app)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [listening]}, daemon=True
        )
        self.thread.start()

        self.https, self.http = free_port(), free_port()
        make = {"nginx": nginx, "caddy": caddy}[proxy]
        words = make(root, folder, listening.getsockname()[1], self.https, self.http)
        self.log = (folder / "out.log").open("wb")
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log, cwd=folder)
        for _ in range(400):
            assert self.process.poll() is None, (folder / "out.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", self.https), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        self._names = itertools.count()

    def visitor(self, kind: str = "person", **options: Any) -> Visitor:
        """Somebody with a session."""
        token = self.store.invite(f"{kind} {next(self._names)}", kind)
        return Visitor(self, **options).join(token)

    def close(self) -> None:
        for visitor in self.visitors:
            visitor.close()
        self.process.terminate()
        self.process.wait(20)
        self.log.close()
        self.server.should_exit = True
        self.thread.join(20)
        self.store.close()


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def behind(
    request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Behind]:
    for program in (request.param, "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    found = Behind(root, tmp_path_factory.mktemp(request.param), request.param)
    yield found
    found.close()


def test_a_friend_signs_in_and_labels(behind: Behind) -> None:
    friend = behind.visitor()
    attributes = set(friend.cookies.split("; ")[1:])
    assert {"HttpOnly", "Secure", "SameSite=strict", "Path=/"} <= attributes

    before = len(list(behind.store.picks()))
    page = friend.ask("GET", "/")
    assert page.status == 200 and "Pick 1" in page.body
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    answered = friend.ask("POST", "/label", page.fields | {"action": "pick 2"}, **OURS)
    assert (answered.status, answered.headers["location"]) == (303, "/")
    assert len(list(behind.store.picks())) == before + 1
    assert Visitor(behind).ask("GET", "/").status == 401


def test_forms_come_from_the_public_address_only(behind: Behind) -> None:
    friend = behind.visitor()
    fields = friend.ask("GET", "/").fields | {"action": "pick 0"}
    before = list(behind.store.events())
    for origin in ("https://evil.example", f"http://{NAME}", f"{BASE}:8443", "null", None):
        headers = FORM | ({} if origin is None else {"Origin": origin})
        assert friend.ask("POST", "/label", fields, **headers).status == 403
    cross = friend.ask("POST", "/label", fields, **OURS | {"Sec-Fetch-Site": "cross-site"})
    assert cross.status == 403
    assert friend.ask("POST", "/label", fields | {"csrf": "0" * 64}, **OURS).status == 403
    assert list(behind.store.events()) == before
    assert friend.ask("POST", "/label", fields, **OURS).status == 303


def test_another_host_name_gets_nothing(behind: Behind) -> None:
    friend = behind.visitor()
    for host in ("evil.example", f"{NAME}.evil.example", "127.0.0.1", f"{NAME}:8443"):
        for more in ({}, {"X-Forwarded-Host": NAME}):
            answer = friend.ask("GET", "/", Host=host, **more)
            # Caddy has nothing for a name that is not its own; nginx passes it on.
            nothing = answer.status == 200 and not answer.body
            assert nothing or answer.status == 421 or host.startswith(f"{NAME}:"), host
            assert "Pick 1" not in answer.body


def test_headers_that_a_visitor_makes_up_change_nothing(behind: Behind) -> None:
    spoofing = {name.replace("-", "_"): value for name, value in SPOOFED.items()}
    token = behind.store.invite("spoofer", "admin")
    visitor = Visitor(behind).join(token, **spoofing)
    assert "Secure" in visitor.cookies

    # An invite link has the page's own name, and forms are still those of that name only.
    page = visitor.ask("GET", "/admin", **spoofing)
    fields = {"csrf": page.fields["csrf"], "name": "dora"}
    made = visitor.ask("POST", "/admin/invite", fields, **OURS | spoofing)
    links = re.findall(r'class="link">([^<]*)<', made.body)
    assert len(links) == 1 and links[0].startswith(f"{BASE}/invite/")
    assert "evil.example" not in made.body
    evil = FORM | {"Origin": "https://evil.example"} | spoofing
    assert visitor.ask("POST", "/admin/invite", fields, **evil).status == 403


def test_one_visitor_cannot_use_up_the_requests_of_another(behind: Behind) -> None:
    settings, buckets = behind.guard.settings, behind.guard.buckets.copy()
    slow = PageSettings(settings.hosts, https=True, rate=0.01, burst=2)
    behind.guard.settings = slow
    behind.guard.buckets.clear()
    try:
        greedy = Visitor(behind, "127.0.0.2")
        answers = [
            greedy.ask(
                "GET", "/", Cookie=f"labelling={n}", **SPOOFED | {"X-Forwarded-For": f"10.0.0.{n}"}
            ).status
            for n in range(40)
        ]
        assert answers == [401] * 32 + [429] * 8  # an address has 16 times a session's burst
        other = Visitor(behind, "127.0.0.3")
        assert other.ask("GET", "/").status == 401
        # Nor does it help to name the other's address, or hurt the other.
        assert greedy.ask("GET", "/", **{"X-Forwarded-For": "127.0.0.3"}).status == 429
        assert other.ask("GET", "/").status == 401
    finally:
        behind.guard.settings = settings
        behind.guard.buckets.clear()
        behind.guard.buckets.update(buckets)


def test_large_files_pass_both_ways_whole(behind: Behind) -> None:
    admin = behind.visitor("admin")
    csrf = admin.ask("GET", "/admin").fields["csrf"]
    row = {"prompt": "p" * 3_000_000, "completions": ["a", "b"], "best": 1, "labeler": "zoe"}
    parts = {"csrf": csrf, "format": "native", 'file"; filename="x.jsonl': json.dumps(row)}
    body = "".join(
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in parts.items()
    )
    kind = {"Content-Type": "multipart/form-data; boundary=edge", "Origin": BASE}
    sent = admin.ask("POST", "/admin/import", f"{body}--edge--\r\n".encode(), **kind)
    assert sent.status == 200 and "1 picks were added" in sent.body
    got = admin.ask("GET", "/admin/export/comparisons.jsonl")
    assert [json.loads(line) for line in got.body.splitlines()] == list(behind.store.picks())
    assert int(got.headers["content-length"]) == len(got.body.encode()) > 3_000_000


def test_http_leads_to_https(behind: Behind) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", behind.http, timeout=10)
    connection.request("GET", "/invite/x", headers={"Host": NAME})
    answer = connection.getresponse()
    connection.close()
    assert answer.status in (301, 308)
    target = urllib.parse.urlsplit(answer.getheader("location", ""))
    assert (target.scheme, target.hostname, target.path) == ("https", NAME, "/invite/x")


def test_no_log_holds_a_link_also_while_the_page_is_down(behind: Behind) -> None:
    """The last test, because it stops the page."""
    token = behind.store.invite("logged")
    Visitor(behind).join(token)
    behind.server.should_exit = True
    behind.thread.join(20)
    assert Visitor(behind).ask("GET", f"/invite/{token}").status == 502

    assert behind.process.poll() is None
    logs = [path.read_text(errors="replace") for path in behind.folder.glob("*.log")]
    assert logs and not any(token in log for log in logs)
