"use strict";
fetch("openapi.json").then((response) => response.json()).then((api) => {
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, facts] of Object.entries(methods)) {
      const section = document.createElement("section");
      const title = section.appendChild(document.createElement("h2"));
      title.textContent = `${method.toUpperCase()} ${path}`;
      section.appendChild(document.createElement("p")).textContent = facts.description ?? "";
      for (const parameter of facts.parameters ?? []) {
        section.appendChild(document.createElement("p")).textContent =
          `?${parameter.name}= (${parameter.schema.type}, default ${parameter.schema.default})`;
      }
      document.getElementById("paths").append(section);
    }
  }
});
