"""The viewer in a real browser: by eye, by keyboard, by screen reader, and with hostile records."""

from __future__ import annotations

import json
import re
import time
import uuid
from contextlib import asynccontextmanager
from importlib import import_module

import jwt
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from test_viewer_security import PRIVATE, PUBLIC
from viewer_store import ACME, change, order_record

from otel_audit._util.ids import uuid7
from otel_audit.record import Body, ErrorInfo, Request, Response, Source
from otel_audit.viewer import Embedding, create_app, mint_token

pytestmark = pytest.mark.slow

WATCH = """
window.ran = [];
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective + " " + e.blockedURI));
window.alert = window.prompt = window.confirm = (text) => window.ran.push(String(text));
"""
CODE = "window.ran.push(1)"
# what has been used to break out of texts, attributes, scripts, styles, links, templates
HOSTILE = (
    f"<script>{CODE}</script>", f"</title><script>{CODE}</script>", f"</textarea><script>{CODE}</script>",
    f"</style><script>{CODE}</script>", f"--><script>{CODE}</script>", f"]]><script>{CODE}</script>",
    f"<img src=x onerror={CODE}>", f'"><img src=x onerror={CODE}>', f"'><img src=x onerror={CODE}>",
    f"<svg onload={CODE}>", f"<svg><script>{CODE}</script></svg>", f"<svg><a xlink:href=javascript:{CODE}><text>x",
    f"<math><mtext></form><form><mglyph><style></math><img src onerror={CODE}>", f"<body onload={CODE}>",
    f"<iframe src=javascript:{CODE}>", f"<iframe srcdoc='<script>{CODE}</script>'>", f"<object data=javascript:{CODE}>",
    f"<embed src=javascript:{CODE}>", f"<details open ontoggle={CODE}>", f"<video><source onerror={CODE}>",
    f"<audio src=x onerror={CODE}>", f"<input autofocus onfocus={CODE}>", f"<marquee onstart={CODE}>",
    f"<form action=javascript:{CODE}><button>x", f"<a href=javascript:{CODE}>x</a>", f"<base href=javascript:{CODE}//>",
    f"<meta http-equiv=refresh content='0;url=javascript:{CODE}'>", f"<link rel=stylesheet href=javascript:{CODE}>",
    f"<style>@import 'javascript:{CODE}'</style>", f"<template><script>{CODE}</script></template>",
    f'" onmouseover="{CODE}', f"' onfocus='{CODE}' autofocus='", f"` onerror={CODE} `", f"x onclick={CODE}",
    f"javascript:{CODE}", f"JaVaScRiPt:{CODE}", f"java\tscript:{CODE}", f"data:text/html,<script>{CODE}</script>",
    f"vbscript:{CODE}", "//evil.example/x", "https://evil.example/", "\\\\evil.example\\x",
    f"{{{{{CODE}}}}}", f"{{%{CODE}%}}", f"${{{CODE}}}", f"#{{{CODE}}}", f"<%= {CODE} %>", "{{7*7}}",
    "\u202eevil\u202c", "\u2066x\u2069\u200b\u200d\ufeff", "a\u0000b\u001b[31m\u0007", "\r\nSet-Cookie: x=1", "\u2028\u2029",
    "😀𝕏", "%3Cscript%3E", "&lt;script&gt;", "&#60;script&#62;", "\\u003cscript\\u003e",
    "../../../etc/passwd", "' OR 1=1 --", "=cmd|' /C calc'!A0", "x" * 3_000, "",
)  # fmt: skip


def hostile_record(text):
    """A record that says it in every field that somebody else can fill."""
    some = text or "empty"
    body = Body(
        content=msgspec.Raw(msgspec.json.encode({some: [text, {some: text}]})), content_type=text
    )
    return order_record(
        some, some,
        actor=msgspec.convert(
            {"id": some, "type": "user", "role": text, "email": text, "on_behalf_of": some, "reason": text, "roles": [text]},
            type=type(order_record("x").actor),
        ),
        tenant=some, action=some, level=text,
        source=Source(address=text, user_agent=text, session_id=some),
        request=Request(id=some, method=text, route=text, path=text, query=text, host=text, headers={some: text}, body=body),
        response=Response(status_code=200, headers={some: text}, body=body),
        changes=(change(some, **{some: [text, some]}),
                 msgspec.structs.replace(change(some), kind="bulk", statement=text, parameters=[text], note=text)),
        error=ErrorInfo(type=some, message=text), metadata={some: text}, resource={"service.name": text},
        trace_id=some, span_id=text,
    )  # fmt: skip


@asynccontextmanager
async def opened(browser, **options):
    """A page that remembers what ran, what was violated, and what the console said."""
    context = await browser.new_context(**options)
    await context.add_init_script(WATCH)
    page = await context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    yield page
    await context.close()


async def quiet(page):
    """Nothing ran that is not ours, and nothing was tried."""
    assert await page.evaluate("window.ran") == []
    assert await page.evaluate("window.violations") == []
    assert [text for text in page.said if "Failed to load resource" not in text] == []


async def rows(frame, count):
    """So many rows are there, as soon as the page is that a click asks for."""
    shown = import_module("playwright.async_api").expect(frame.locator("[data-row]"))
    await shown.to_have_count(count, timeout=30_000)


def paths(store):
    return (
        "/", "/?q=tenant:acme", "/?q=event:none", "/?q=actr:x", "/help", "/tail", "/actor?id=ada@acme.example",
        f"/record/{store.ids['refunded']}", f"/record/{store.ids['failed']}", f"/record/{uuid.uuid4()}",
        "/entity?e=order:1", f"/entity?e=order:1&of=acme&at={store.ids['paid']}", "/reports",
        "/reports/changes?from=1d&to=now", "/reports/integrity?from=1d&to=now",
        "/reports/rights?from=1d&to=now", "/reports/none?from=1d&to=now",
    )  # fmt: skip


class TestAccessibility:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    async def test_axe_finds_nothing(self, store, running, browser, scheme):
        """WCAG 2.2 AA on every page, wide and at 320 px; nothing is wider than the screen."""
        axe_core = pytest.importorskip("axe_playwright_python.async_playwright")
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        for width in (1440, 320):
            size = {"width": width, "height": 900}
            async with opened(browser, color_scheme=scheme, viewport=size) as page:
                for path in paths(store):
                    await page.goto(running + path)
                    # axe's own code is put in by the debugger, past the policy
                    found = await axe_core.Axe().run(
                        page, options={"runOnly": rules, "resultTypes": ["violations"]}
                    )
                    told = [
                        (one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]
                    ]
                    assert told == [], (path, width)
                    wide = "document.documentElement.scrollWidth - window.innerWidth"
                    assert await page.evaluate(wide) <= 0, (path, width)
                await quiet(page)

    async def test_everything_goes_by_keyboard(self, store, running, browser):
        """/ to the query, j and k along the rows, Enter opens, Esc goes back, ? helps."""
        async with opened(browser) as page:
            await page.goto(f"{running}/?q=tenant:acme")
            await page.keyboard.press("/")
            assert await page.evaluate("document.activeElement.id") == "q"
            await page.keyboard.press("Escape")
            for key in ("j", "j", "j", "k"):
                await page.keyboard.press(key)
            href = await page.evaluate("document.activeElement.href")
            second = await page.locator("[data-row] a").evaluate_all(
                "(links) => [...new Set(links.map((a) => a.closest('[data-row]')))][1].querySelector('a').href"
            )
            assert href == second
            await page.keyboard.press("Enter")
            await page.wait_for_url("**/record/**")
            await page.keyboard.press("Escape")
            await page.wait_for_url("**/?q=tenant:acme")
            await page.keyboard.press("?")
            await page.wait_for_url("**/help")
            await quiet(page)

    async def test_works_without_javascript(self, store, running, browser):
        """Everything but the live tail."""
        async with opened(browser, java_script_enabled=False) as page:
            await page.goto(f"{running}/?q=tenant:acme")
            assert await page.locator("[data-row]").count() == 4
            await page.fill("#q", "outcome:failure tenant:acme")
            await page.click("text=Search")
            await rows(page, 1)
            await page.click("[data-row] a")
            await page.locator("main", has_text="rolled back").wait_for()
            await page.goto(f"{running}/?q=")
            await page.click(".facet a:has-text('globex')")
            await rows(page, 2)


class TestHistogram:
    async def test_a_span_is_chosen_by_dragging(self, store, running, browser):
        """The query gets the bounds of the bars, instead of those that it had."""
        now = time.time_ns()
        old = [now - days * 86_400 * 10**9 for days in range(1, 60)]
        await store.add(
            *(order_record("old.made", record_id=uuid7(at), occurred_at=at) for at in old)
        )
        await store.seal()
        async with opened(browser) as page:
            await page.goto(f"{running}/?q=event:old.made time:90d")
            box = await page.locator(".histogram svg").bounding_box()
            await page.mouse.move(box["x"] + 5, box["y"] + 40)
            await page.mouse.down()
            await page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40, steps=4)
            await page.mouse.up()
            await page.wait_for_url("**time%3A%3E%3D**")
            query = await page.input_value("#q")
            assert query.startswith("event:old.made time:>=")
            assert "90d" not in query
            assert 10 < await page.locator("[data-row]").count() < 45
            await page.click(".histogram svg a:last-of-type .hit", force=True)
            await page.wait_for_load_state()
            assert await page.locator("[data-row]").count() >= 1
            await quiet(page)


class TestHostileRecords:
    async def test_nothing_of_them_runs(self, store, running, browser):
        """Sixty texts in every captured field, on every page on which they appear."""
        assert len(HOSTILE) > 60
        records = [hostile_record(text) for text in HOSTILE]
        await store.add(*records)
        await store.seal()
        async with opened(browser) as page:
            await page.goto(f"{running}/?q=")
            assert await page.locator("[data-row]").count() == 50
            for record in records:
                await page.goto(f"{running}/record/{record.record_id}")
                assert (
                    await page.locator(
                        "main :is(script, img, iframe, object, embed, style, base, meta, form)"
                    ).count()
                    == 0
                )
                hrefs = await page.locator("main a").evaluate_all("(all) => all.map((a) => a.href)")
                assert [
                    h for h in hrefs if not h.startswith((running, "https://traces.example/"))
                ] == []
                shown = await page.inner_text("body")
                assert (
                    re.search("[\u202a-\u202e\u2066-\u2069\u200b\ufeff\u0000\u0007\u001b]", shown)
                    is None
                )
                assert await page.evaluate("[window.ran, window.violations]") == [[], []]
            for record in records[:: len(records) // 8]:
                for path, name, value in (
                    ("/actor", "id", record.actor.id),
                    ("/entity", "e", f"order:{record.target.id}"),
                    ("/", "q", json.dumps(record.event_name)),
                ):
                    await page.goto(
                        f"{running}{path}?"
                        + await page.evaluate(
                            "([n, v]) => new URLSearchParams({[n]: v}).toString()", [name, value]
                        )
                    )
                    await quiet(page)
            await quiet(page)


def forging(forge):
    """Answers with evidence that somebody on the way has changed."""

    async def answer(route):
        bundle = await (await route.fetch()).json()
        forge(bundle)
        await route.fulfill(json=bundle)

    return answer


class TestVerification:
    async def test_the_browser_checks_for_itself(self, store, running, browser):
        """Text, leaf, root and signature by WebCrypto; a changed letter does not hold."""
        async with opened(browser) as page:
            address = f"{running}/record/{store.ids['refunded']}"
            await page.goto(address)
            await page.click("text=Verify in this browser")
            await page.wait_for_selector("text=Verified in this browser")
            for forge in (
                lambda bundle: bundle["records"][0].update(payload=bundle["records"][0]["payload"].replace("late", "soon")),
                lambda bundle: bundle["records"][0].update(leaf=1),
                lambda bundle: bundle.update(checkpoint=bundle["checkpoint"].replace("log\n6", "log\n7")),
                lambda bundle: bundle.update(keys=[bundle["keys"][0][:-6] + "AAAAA="]),
            ):  # fmt: skip
                await page.route("**/evidence.json*", forging(forge))
                await page.goto(address)
                await page.click("text=Verify in this browser")
                await page.wait_for_selector(".steps .bad")
                await page.unroute("**/evidence.json*")
            await quiet(page)


class TestTail:
    async def test_shows_what_is_sealed_and_can_be_paused(self, store, running, browser):
        """Live, then paused with the number of what is new."""
        async with opened(browser) as page:
            await page.goto(f"{running}/tail?q=event:live.made")
            await page.wait_for_selector("[data-state]:text-is('live')")
            await store.add(order_record("live.made", "<b>1</b>"))
            await store.seal()
            await page.wait_for_selector("[data-row]")
            assert "order:<b>1</b>" in await page.inner_text("[data-row]")
            await page.click("text=Pause")
            await store.add(order_record("live.made", "2"), order_record("live.made", "3"))
            await store.seal()
            await page.wait_for_selector("text=paused, 2 new")
            assert await page.locator("[data-row]").count() == 1
            await page.click("text=Pause")
            assert await page.locator("[data-row]").count() == 3
            await quiet(page)


class TestFrame:
    async def test_a_tenant_looks_from_the_applications_page(
        self, store, viewer_role, serve, browser, tmp_path
    ):
        """Search, record, proof, export; no cookie, no token in any URL, nothing of another tenant."""
        from ports import free_port

        await store.seal()
        port = free_port()
        origin = f"http://localhost:{port}"
        viewer = create_app(
            dsn=viewer_role, embedding=Embedding(PUBLIC, (origin,)), keys=[store.key.public]
        )
        minted = []

        async def page_of_app(_):
            loader = f'<script src="{address}/static/loader.js"></script>'
            return HTMLResponse(
                f"<!doctype html>{loader}<otel-audit-viewer token-url=/token></otel-audit-viewer>"
            )

        async def token(_):
            may = ("export", "prove", "tail")
            minted.append(mint_token(PRIVATE, tenant="acme", viewer=ACME.name, may=may))
            return JSONResponse({"token": minted[-1]})

        app = Starlette(routes=[Route("/", page_of_app), Route("/token", token)])
        async with (
            serve(viewer) as address,
            serve(app, port),
            opened(browser, accept_downloads=True) as page,
        ):
            urls = []
            page.on("request", lambda request: urls.append(request.url))
            await page.goto(origin)
            frame = page.frame_locator("iframe")
            await rows(frame, 4)
            await frame.locator("[data-row] a", has_text="2").nth(1).click()
            await frame.locator("text=Verify in this browser").click()
            await frame.locator("text=Verified in this browser").wait_for()
            await frame.locator("#q").fill("order")
            await frame.locator("button", has_text="Search").click()
            async with page.expect_download() as download:
                await frame.locator("text=Export all").click()
            assert (await (await download.value).path()).stat().st_size > 100
            await page.evaluate("history.back()")
            await frame.locator("text=Verify in this browser").wait_for()
            await frame.locator("nav a", has_text="Live").click()
            await frame.locator("[data-state]:text-is('live')").wait_for()
            await store.add(order_record("live.made"), order_record("secret.made", tenant="globex"))
            await store.seal()
            await rows(frame, 1)
            assert await page.context.cookies() == []
            assert not any(minted[0] in url for url in urls)
            assert "secret" not in await frame.locator("body").inner_text()
            await quiet(page)

    async def test_a_token_that_has_ended_is_renewed(self, store, viewer_role, serve, browser):
        """The frame asks the application for another one, and goes on where it was."""
        from ports import free_port

        port, revoked, minted = free_port(), set(), []
        embedding = Embedding(
            PUBLIC, (f"http://localhost:{port}",), is_revoked=revoked.__contains__
        )

        async def page_of_app(_):
            loader = f'<script src="{address}/static/loader.js"></script>'
            return HTMLResponse(
                f"<!doctype html>{loader}<otel-audit-viewer token-url=/token></otel-audit-viewer>"
            )

        async def token(_):
            minted.append(mint_token(PRIVATE, tenant="acme", viewer=ACME.name))
            return JSONResponse({"token": minted[-1]})

        app = Starlette(routes=[Route("/", page_of_app), Route("/token", token)])
        async with (
            serve(create_app(dsn=viewer_role, embedding=embedding)) as address,
            serve(app, port),
            opened(browser) as page,
        ):
            await page.goto(f"http://localhost:{port}")
            frame = page.frame_locator("iframe")
            await frame.locator("[data-row]").first.wait_for()
            revoked.add(jwt.decode(minted[0], options={"verify_signature": False})["jti"])
            await frame.locator("[data-row] .target a").first.click()
            await frame.locator("text=History of order:1").wait_for()
            assert len(minted) == 2

    async def test_another_page_gets_nothing(self, viewer_role, store, serve, browser):
        """The frame does not stand in pages of other origins."""
        viewer = create_app(dsn=viewer_role, embedding=Embedding(PUBLIC, ("https://app.example",)))

        async def evil(_):
            return HTMLResponse(f"<!doctype html><iframe src='{address}/embed'></iframe>")

        async with (
            serve(viewer) as address,
            serve(Starlette(routes=[Route("/", evil)])) as other,
            opened(browser) as page,
            page.expect_console_message(lambda said: "frame-ancestors" in said.text),
        ):
            await page.goto(other.replace("127.0.0.1", "localhost"))
