// What HTML alone cannot do: signing in with the code of an address, lists that follow what happens, and forms that are
// sent once however often they are clicked.
const POLL_MS = 2500;
// A form is sent once in this time, which is longer than between the clicks of a person who means one click. After it a
// form whose sending was stopped can be sent again.
const SENT_MS = 3000;
// The button that forgets the next text does nothing for this time after the page has come.
const NEXT_MS = 600;

// Between two pages of a search of many people, so that the gateway has time for replies.
const LOOK_ON_MS = 200;

function signIn(form) {
  const code = location.hash.slice(1);
  if (!/^[0-9a-f]+$/.test(code)) return; // "content" is the link that skips to it
  history.replaceState(null, "", location.pathname + location.search);
  form.elements.key.value = code;
  form.requestSubmit();
}

// Reads the same page again and again, and replaces the elements with these ids. `#live` has the button that pauses it.
function follow(ids) {
  const bar = document.getElementById("live");
  const pauseButton = bar?.querySelector("button");
  let isPaused = false;
  if (bar) bar.hidden = false;
  document.querySelectorAll("[data-still]").forEach((each) => each.remove());
  pauseButton?.addEventListener("click", () => {
    isPaused = !isPaused;
    pauseButton.setAttribute("aria-pressed", String(isPaused));
    pauseButton.nextElementSibling.textContent = isPaused ? "The list stands still." : "The list follows what happens.";
  });
  const poll = async () => {
    if (!isPaused && !document.hidden) {
      try {
        // The header says that no person has asked, so that polling keeps no session from ending.
        const reply = await fetch(location.href, { headers: { "x-mnemogate-poll": "1" } });
        if (reply.redirected) return location.reload(); // signed out
        if (reply.ok) {
          const page = new DOMParser().parseFromString(await reply.text(), "text/html");
          for (const id of ids) replaceElement(document.getElementById(id), page.getElementById(id));
        }
      } catch {
        // The gateway cannot be reached; the next poll may reach it.
      }
    }
    setTimeout(poll, POLL_MS);
  };
  setTimeout(poll, POLL_MS);
}

// Looks through further people, a page after the other, until some are found or a person stops it.
async function lookOn(bar) {
  let isStopped = false;
  bar.hidden = false;
  bar.querySelector("button").addEventListener("click", () => (isStopped = true));
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_ON_MS));
    const found = document.getElementById("found");
    const link = found.querySelector("[data-look-on]");
    if (isStopped || !link) break;
    const reply = await fetch(link.href).catch(() => null); // the link stays, and says the same to whoever follows it
    if (!reply?.ok || reply.redirected || isStopped) break;
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    history.replaceState(null, "", link.href);
    found.replaceWith(document.adoptNode(page.getElementById("found")));
  }
  bar.hidden = true;
  bar.nextElementSibling.textContent = document.querySelector("#found [role=status]").textContent;
}

// Replaces an element, unless a person has the focus, a selection or an open question in it, or has sent a form: then the
// answer replaces the page.
function replaceElement(shown, fresh) {
  if (!shown || !fresh || sentForms.size || shown.innerHTML === fresh.innerHTML) return;
  if (shown.contains(document.activeElement) || shown.open || shown.querySelector("details[open]")) return;
  const selection = getSelection();
  if (selection && !selection.isCollapsed && selection.containsNode(shown, true)) return;
  // A screen reader says what changes within an element of this role, and not that another takes its place.
  if (shown.getAttribute("role") === "status") shown.replaceChildren(...fresh.childNodes);
  else shown.replaceWith(document.adoptNode(fresh));
}

// The forms that were sent within `SENT_MS`.
const sentForms = new Set();

function sendOnce() {
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (sentForms.has(form)) return event.preventDefault();
    sentForms.add(form);
    setTimeout(() => sentForms.delete(form), SENT_MS);
  });
}

// A conversation is opened at its end. `scrollIntoView` would also have Tab begin there, and not at "Skip to content".
const openingPoint = document.querySelector("[data-open-at]");
if (openingPoint && !location.hash) scrollBy(0, openingPoint.getBoundingClientRect().top);

sendOnce();
// What was typed and not saved goes with the page, so that the browser asks before it leaves. A text that was refused
// comes with the page.
addEventListener("beforeunload", (event) => {
  const texts = [...document.querySelectorAll(".editor textarea")];
  const isUnsaved = (each) => each.value !== each.defaultValue || "unsaved" in each.dataset;
  if (texts.some((each) => isUnsaved(each) && !sentForms.has(each.form))) event.preventDefault();
});
// The button that forgets the next text stands about where the last click was. The second of two quick clicks is not
// meant for it.
const nextButton = document.querySelector(".next button.danger");
if (nextButton) {
  nextButton.disabled = true;
  setTimeout(() => (nextButton.disabled = false), NEXT_MS);
}
// Where the browser lets no script copy, as without TLS, the text is there to be marked.
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.nextElementSibling.textContent = "Copied.";
  });
}
const signInForm = document.querySelector("form[data-sign-in]");
if (signInForm) {
  signIn(signInForm);
  addEventListener("hashchange", () => signIn(signInForm)); // a fresh link in the tab of an old one
}
const liveIds = [...document.querySelectorAll("[data-live]")].map((each) => each.id).filter(Boolean);
if (liveIds.length) follow(liveIds);
const lookingBar = document.getElementById("looking");
if (lookingBar) lookOn(lookingBar);
