// What HTML alone cannot do: signing in with the code of an address, lists that follow what happens, and forms that are
// sent once however often they are clicked.
const POLL_MS = 2500;
// Longer than between the clicks of a person who means one; then a form that was stopped can be sent again.
const SENT_MS = 3000;
const NEXT_MS = 600;

function signIn(form) {
  const code = location.hash.slice(1);
  if (!/^[0-9a-f]+$/.test(code)) return; // "content" is the link that skips to it
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.key.value = code;
  form.requestSubmit();
}

// An element with `data-live` and an id is taken anew from the same page. `#live` has the button that pauses it.
function follow(ids) {
  const bar = document.getElementById("live");
  const pause = bar?.querySelector("button");
  let paused = false;
  if (bar) bar.hidden = false;
  document.querySelectorAll("[data-still]").forEach((each) => each.remove());
  pause?.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.nextElementSibling.textContent = paused ? "The list stands still." : "The list follows what happens.";
  });
  const take = async () => {
    if (!paused && !document.hidden) {
      try {
        // The header: nobody has asked for this, so that it keeps no session from ending.
        const reply = await fetch(location.href, { headers: { "x-mnemogate-poll": "1" } });
        if (reply.redirected) return location.reload(); // signed out
        if (reply.ok) {
          const page = new DOMParser().parseFromString(await reply.text(), "text/html");
          for (const id of ids) swap(document.getElementById(id), page.getElementById(id));
        }
      } catch {
        // The gateway is away; the next look may find it.
      }
    }
    setTimeout(take, POLL_MS);
  };
  setTimeout(take, POLL_MS);
}

// Replaces an element unless someone is in the middle of it, or has sent a form, whose answer replaces the page.
function swap(old, fresh) {
  if (!old || !fresh || sent.size || old.innerHTML === fresh.innerHTML) return;
  if (old.contains(document.activeElement)) return;
  const selection = getSelection();
  if (selection && !selection.isCollapsed && selection.containsNode(old, true)) return;
  old.replaceWith(document.adoptNode(fresh));
}

// The forms that were sent within `SENT_MS`.
const sent = new Set();

function sendOnce() {
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (sent.has(form)) return event.preventDefault();
    sent.add(form);
    setTimeout(() => sent.delete(form), SENT_MS);
  });
}

// A conversation is opened at its end. `scrollIntoView` would also have Tab begin there, and not at "Skip to content".
const end = document.querySelector("[data-open-at]");
if (end && !location.hash) scrollBy(0, end.getBoundingClientRect().top);

sendOnce();
// What is forgotten next stands about where the last click was. The second click of a hand is not meant for it.
const next = document.querySelector(".next button.danger");
if (next) {
  next.disabled = true;
  setTimeout(() => (next.disabled = false), NEXT_MS);
}
const form = document.querySelector("form[data-sign-in]");
if (form) {
  signIn(form);
  addEventListener("hashchange", () => signIn(form)); // a fresh link in the tab of an old one
}
const live = [...document.querySelectorAll("[data-live]")].map((each) => each.id).filter(Boolean);
if (live.length) follow(live);
