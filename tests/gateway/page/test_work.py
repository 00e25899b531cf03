"""The screens of operators' own business: the work of the background, and keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.records import Scope
from storage.sql.statements import make_statement
from tests.agents.batches.batch_world import serve_batches
from tests.doubles.upstream import StrictUpstream
from tests.gateway.page.browser import Browser
from tests.gateway.page.memories import memory_of
from tests.gateway.page.operator import Operator, operate, operator_of, plain
from tests.gateway.page.test_sign_in import audit

HOSTILE = "<script>document.title='gone'</script> \u202e\u2066 " + "W" * 150


def enqueue(
    operator: Operator,
    key: str,
    user: str | None = None,
    error: str | None = None,
    retry_in_s: float | None = None,
) -> int:
    """Adds a job of a kind that is not performed. error: of its attempt. retry_in_s: None: it failed for good."""
    world = operator.world
    jobs = world.store.jobs

    async def add() -> int:
        agent = (
            None
            if user is None
            else await world.store.agents.find(Scope("default", "default", f"user:{user}"))
        )
        number = 0 if agent is None else agent.id
        id = await jobs.write_enqueuing(lambda connection: jobs.enqueue_in(connection, "sweep", number, key))
        if error is not None:
            job = await jobs.leases.claim(["sweep"], lease_s=60.0, tries=5)
            assert job is not None
            await jobs.fail(job, error, retry_in_s)
        return id

    return world.gateway.call(add())


def jobs_of(operator: Operator, query: str = "") -> list[tuple[int, str, str | None]]:
    items = operator.twin(f"work{query}")["jobs"]["items"]
    return [(each["id"], each["state"], each["name"]) for each in items if each["kind"] == "sweep"]


@pytest.mark.both
def test_failed_jobs_come_first(upstream: StrictUpstream, tmp_path: Path) -> None:
    with operate(upstream, tmp_path) as operator:
        operator.world.chat(user="alice").say("Hello.")
        dead = enqueue(operator, "a", "alice", error="the model answered 401")
        first, second = enqueue(operator, "b", "alice"), enqueue(operator, "c")
        expected = [(dead, "dead", "alice"), (second, "pending", None), (first, "pending", "alice")]
        assert jobs_of(operator) == expected
        record = operator.twin("work")
        alice = memory_of(operator.world).uid
        failed = record["jobs"]["items"][0]
        assert (failed["error"], failed["memory"]) == ("the model answered 401", alice)
        assert failed["created"] <= operator.world.clock()
        assert f'<a href="m/{alice}"><span class="words" dir="auto" lang="">alice</span></a>' in (
            operator.get("work").body.decode()
        )
        assert (record["spent_today"], record["bound"]) == (0, 2_000_000)
        assert record["batches"] == {"items": [], "next": None}
        seen, after = [], ""
        while True:
            page = operator.twin(f"work?limit=1{after}")["jobs"]
            seen += [each["id"] for each in page["items"] if each["kind"] == "sweep"]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
        assert seen == [dead, second, first]


def test_the_work_says_that_a_job_failed_and_is_tried_again(operator: Operator) -> None:
    """It said that jobs were under way, while none of their attempts had worked."""
    enqueue(operator, "a")
    assert "Jobs are under way; none has failed for good." in plain(operator.get("work").body.decode())
    enqueue(operator, "b", error="it failed", retry_in_s=60.0)
    assert "1 job failed and will be tried again." in plain(operator.get("work").body.decode())
    enqueue(operator, "c", error="it failed")
    assert "1 job has failed for good." in plain(operator.get("work").body.decode())


def test_a_failed_job_is_tried_again_or_cancelled(upstream: StrictUpstream, tmp_path: Path) -> None:
    with operate(upstream, tmp_path) as operator:
        operator.world.chat(user="alice").say("Hello.")
        dead = enqueue(operator, "a", "alice", error="it failed")
        reply = operator.post(f"jobs/{dead}/retry")
        assert (reply.status, reply.headers["location"]) == (303, "../../work#retried")
        assert jobs_of(operator) == [(dead, "pending", "alice")]
        assert operator.twin(f"jobs/{dead}/cancel", {})["id"] == dead
        assert jobs_of(operator) == []
        assert operator.post(f"jobs/{dead}/cancel").status == 404
        assert operator.post(f"jobs/{1 << 63}/cancel").status == 404
        done = [(each.action, each.what) for each in audit(operator) if each.action.startswith("job_")]
        assert done == [("job_cancel", f"job {dead}"), ("job_retry", f"job {dead}")]


@pytest.mark.both
def test_a_job_that_keeps_failing_is_a_problem_of_the_overview(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """All was well while nothing could be learned, until the last of many attempts had failed."""
    with operate(upstream, tmp_path) as operator:
        operator.world.chat(user="alice").say("Hello.")
        enqueue(operator, "a", "alice", error="it failed", retry_in_s=0.0)
        jobs = operator.world.store.jobs
        for sentence in ("All is well.", "1 job keeps failing, and will be tried again."):

            async def fail_again() -> None:
                job = await jobs.leases.claim(["sweep"], lease_s=60.0, tries=5)
                assert job is not None
                await jobs.fail(job, "it failed", 0.0)

            operator.world.gateway.call(fail_again())
            assert operator.twin("overview")["sentence"] == sentence
        assert operator.twin("overview")["problems"][0]["href"] == "work"
        assert operator_of(operator.world, "shop").twin("overview")["sentence"] == "All is well."


def test_so_many_failed_jobs_are_tried_again_that_others_need_not_wait(operator: Operator) -> None:
    """5,000 of them held an operator's browser for three seconds, and had no entry in the audit until then."""
    added = make_statement(
        "a test's",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 502) "
        "INSERT INTO jobs (agent, kind, key, state, epoch, due, asked, created, payload, first) "
        "SELECT 0, 'sweep', i, 'dead', 0, 0, 0, 0, x'7b7d', 0 FROM n",
    )

    async def add() -> None:
        await operator.world.store.database.write(lambda connection: connection.run(added, ()))

    operator.world.gateway.call(add())
    text = plain(operator.get("work").body.decode())
    assert "Retry the newest failed jobs…" in text
    assert "The newest 500 of 502 begin their attempts again now, also those on other pages" in text
    assert "The others stay in the list: retry them next." in text
    assert "Retry 500 jobs" in text
    assert operator.twin("jobs/retry", {}) == {"retried": 500, "left": 2}
    assert "2 jobs have failed for good." in plain(operator.get("work").body.decode())
    assert operator.twin("jobs/retry", {}) == {"retried": 2, "left": 0}


@pytest.mark.both
def test_all_failed_jobs_are_tried_again_at_once(upstream: StrictUpstream, tmp_path: Path) -> None:
    with operate(upstream, tmp_path) as operator:
        operator.world.chat(user="alice").say("Hello.")
        of_all = enqueue(operator, "a", error="it failed")
        dead = [enqueue(operator, f"k{number}", "alice", error="it failed") for number in range(60)]
        text = plain(operator.get("work").body.decode())
        assert "61 jobs have failed for good." in text  # more than the list shows
        assert "Retry 61 jobs" in text
        # An operator of one project retries the jobs of its memories.
        assert operator_of(operator.world, "shop").program("POST", "jobs/retry.json", {}).status == 404
        assert operator_of(operator.world, "default").twin("jobs/retry", {}) == {"retried": 60, "left": 0}
        states = {id: state for id, state, _ in jobs_of(operator, "?limit=200")}
        assert states == {of_all: "dead", **dict.fromkeys(dead, "pending")}
        reply = operator.post("jobs/retry")
        assert (reply.status, reply.headers["location"]) == (303, "../work#retried")
        assert operator.post("jobs/retry").status == 404
        done = [each.what for each in audit(operator) if each.action == "job_retry"]
        assert done == ["failed jobs, 1 retried", "failed jobs, 60 retried"]


def test_an_operator_of_one_project_sees_the_work_of_its_memories(operator: Operator) -> None:
    operator.world.chat(user="alice").say("Hello.")
    own, of_all = enqueue(operator, "a", "alice"), enqueue(operator, "b")
    here, elsewhere = operator_of(operator.world, "default"), operator_of(operator.world, "shop")
    assert [id for id, _, _ in jobs_of(here)] == [own]
    assert jobs_of(elsewhere) == []
    assert elsewhere.post(f"jobs/{own}/cancel").status == 404
    assert elsewhere.program("POST", f"jobs/{own}/retry.json", {}).status == 404
    assert here.post(f"jobs/{of_all}/cancel").status == 404
    reader = operator_of(operator.world, is_read=True)
    assert b"Cancel" not in reader.get("work").body
    assert reader.post(f"jobs/{own}/cancel").status == 403
    assert len(jobs_of(operator)) == 2
    assert operator.post("batches/job-none/cancel").status == 404


def test_a_batch_is_shown_and_cancelled(tmp_path: Path) -> None:
    with serve_batches(tmp_path, held=True) as world:
        agents = world.create_agents(3)
        older, batch = world.create_batch(agents[:1]), world.create_batch(agents)
        operator = operator_of(world.world)
        page = operator.twin("work?limit=1")["batches"]
        assert [(each["id"], each["counts"]["total"]) for each in page["items"]] == [(batch["id"], 3)]
        [last] = operator.twin(f"work?limit=1&after_batch={page['next']}")["batches"]["items"]
        assert last["id"] == older["id"]
        elsewhere = operator_of(world.world, "shop")
        assert elsewhere.twin("work")["batches"]["items"] == []
        assert elsewhere.post(f"batches/{batch['id']}/cancel").status == 404
        button = f"Cancel batch {batch['id']}</button>"
        assert button in operator.get("work").body.decode()
        assert operator.post(f"batches/{batch['id']}/cancel").status == 303
        assert button not in operator.get("work").body.decode()
        [cancelled, _] = operator.twin("work")["batches"]["items"]
        assert (cancelled["state"], cancelled["counts"]["cancelled"]) == ("cancelled", 3)
        done = [each.what for each in audit(operator) if each.action == "job_cancel"]
        assert done == [f"batch {batch['id']}"]


def test_the_work_looks_right(browser: Browser, operator: Operator) -> None:
    browser.check_screen(operator, "work", heading="Work")
    operator.world.chat(user="alice").say("Hello.")
    operator.world.chat(user=HOSTILE).say("Hello.")
    for number in range(3):
        enqueue(operator, f"k{number}", "alice", error=HOSTILE if number else "the model answered 401")
    enqueue(operator, "waits", HOSTILE)
    browser.check_screen(operator, "work", heading="Work")
    with browser.open(operator, "work") as page:
        row = page.get_by_role("table", name="Jobs").get_by_role("row").nth(1)
        cancel = row.get_by_role("button", name="Cancel job", include_hidden=True)
        name = cancel.text_content()
        assert not cancel.is_visible()
        row.locator("summary", has_text="Cancel job").click()
        cancel.click()
        page.wait_for_url("**/ui/work#cancelled")
        assert page.get_by_role("status").filter(has_text="it is cancelled").is_visible()
        assert name is not None
        assert page.get_by_role("button", name=name.strip()).count() == 0
        assert page.title() == "Work – Mnemogate"
        retry = page.get_by_role("button", name="Retry 2 jobs")
        assert not retry.is_visible()
        page.get_by_text("Retry all failed jobs…").click()
        retry.click()
        page.wait_for_url("**/ui/work#retried")
        assert page.get_by_role("status").filter(has_text="what had failed begins again").is_visible()
        assert page.get_by_text("Retry all failed jobs…").is_hidden()


def test_an_open_question_stays_open_while_the_page_follows_the_work(
    browser: Browser, operator: Operator
) -> None:
    enqueue(operator, "a", error="it failed")
    with browser.open(operator, "work") as page:
        page.clock.install()
        page.reload()
        question = page.locator("#jobs details.ask")
        question.locator("summary").click()
        page.get_by_role("heading", name="Work").click()  # takes the focus from the question
        enqueue(operator, "b", error="it failed")
        page.clock.run_for(3_000)
        page.get_by_text("2 jobs have failed for good.").wait_for()
        assert question.get_by_role("button").is_visible()
        question.locator("summary").click()
        page.get_by_role("heading", name="Work").click()
        page.clock.run_for(3_000)
        page.locator("#jobs tbody tr").nth(1).wait_for()


def test_the_form_of_a_key_warns_that_requests_need_one_from_then_on(operator: Operator) -> None:
    world = operator.world
    text = plain(operator.get("keys").body.decode())
    assert "each request needs one, also from this machine, and also after it is revoked" in text
    asked = [{"role": "user", "content": "Hello."}]
    first = "It is the first key that is not an operator’s: from now on each request needs a key"
    assert first not in plain(operator.post("keys", name="reader", kind="operator-read").body.decode())
    assert world.post(asked).status == 200
    assert first in plain(operator.post("keys", name="shop").body.decode())
    assert world.post(asked).status == 401
    second = plain(operator.post("keys", name="shop").body.decode())
    assert first not in second
    assert "also after it is revoked" not in second
    key = operator.twin("keys")["items"][0]
    operator.twin(f"keys/{key['id']}/revoke", {})
    assert world.post(asked).status == 401


def test_keys_are_made_and_revoked_in_the_browser(browser: Browser, operator: Operator) -> None:
    with browser.open(operator, "keys") as page:
        page.get_by_role("textbox", name="Name").fill("phone")
        page.get_by_role("combobox", name="Kind").select_option("operator-read")
        page.get_by_role("button", name="Make key").click()
        secret = page.get_by_role("status", name="New key").locator("pre").text_content()
        assert page.evaluate("document.activeElement.textContent") == secret
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Copy the key").click()
        page.get_by_text("Copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == secret
        page.goto(f"http://{operator.host}/ui/keys")
        assert secret not in page.content()
        reader = Operator(operator.world, secret)
        assert reader.sign_in().status == 303
        revoke = page.get_by_role("button", name="Revoke phone")
        assert not revoke.is_visible()
        page.get_by_text("Revoke phone…").click()
        revoke.click()
        page.wait_for_url("**/ui/keys#revoked")
        assert page.get_by_role("status").filter(has_text="The key is revoked.").is_visible()
        assert page.get_by_role("button", name="Revoke phone").count() == 0
        assert reader.get("").status == 303
    made = [(each.action, each.what) for each in audit(operator) if each.action.startswith("key_")]
    assert made == [("key_revoke", "key 2"), ("key_create", "key 2")]


@pytest.mark.both
@pytest.mark.parametrize("field", ["name", "project"])
def test_a_key_with_u_0000_in_a_field_is_refused(
    upstream: StrictUpstream, tmp_path: Path, field: str
) -> None:
    """PostgreSQL would store the text without it, so that the key would open another project than was asked for."""
    with operate(upstream, tmp_path) as operator:
        fields = {"name": "phone", "project": "default", field: "default\0"}
        keys = operator.twin("keys")["items"]
        reply = operator.program("POST", "keys.json", fields)
        assert (reply.status, reply.json["error"]["param"]) == (400, field), reply.body
        page = operator.post("keys", **fields)
        assert (page.status, f"{field} contains U+0000." in page.body.decode()) == (400, True)
        assert operator.twin("keys")["items"] == keys


def test_a_hostile_name_of_a_key_does_nothing(browser: Browser, operator: Operator) -> None:
    operator.twin("keys", {"name": HOSTILE.strip()})
    browser.check_screen(operator, "keys", heading="Keys")
    page = operator.get("keys").body.decode()
    assert "\u202e" not in page
    assert "‹U+202E›" in page
    assert "<script>document" not in page
    assert operator.twin("keys")["items"][0]["name"] == HOSTILE.strip()
