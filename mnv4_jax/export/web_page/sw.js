// Keeps the whole page for when there is no network. VERSION and FILES are put above by
// mnv4_jax/export/web.py; another version has other bytes here, and is fetched whole before it
// takes over.
"use strict";

const mine = `mnv4_jax ${self.registration.scope} `;
const name = mine + VERSION;

self.addEventListener("install", (event) => event.waitUntil(caches.open(name).then(
  (cache) => cache.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" }))))));

self.addEventListener("activate", (event) => event.waitUntil(caches.keys().then((names) =>
  Promise.all(names.filter((n) => n.startsWith(mine) && n !== name).map((n) => caches.delete(n))))));

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  event.respondWith(caches.open(name)
    .then((cache) => cache.match(event.request, { ignoreSearch: true }))
    .then((kept) => kept ?? fetch(event.request)));
});
