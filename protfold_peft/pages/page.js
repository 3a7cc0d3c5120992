const byId = id => document.getElementById(id);
const make = (tag, text = "", attributes = {}) => Object.assign(document.createElement(tag), { textContent: text }, attributes);

// Base64 of gzip, as the page stores the structures and the viewer's script.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// A structure's text as an address that the viewer can read. Kept as long as the page: the viewer may still be reading
// it when another one is chosen.
const textUrl = text => URL.createObjectURL(new Blob([text], { type: "text/plain" }));

// Order of two values of a column: numbers by size, texts with the numbers in them by size, nothing always last.
function order(x, y, up) {
  const nothing = value => value === null || value === undefined || value === "";
  if (nothing(x) || nothing(y)) return nothing(x) - nothing(y);
  return (up ? 1 : -1) * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
}

// Let the titles of a table sort its rows, by what their cells hold: `data-value`, a number where the whole column has
// numbers. The first click puts the largest number on top, and names in their order.
function sortable(table) {
  const [body] = table.tBodies;
  const buttons = [...table.querySelectorAll("[data-column]")];
  const text = (row, column) => row.cells[column].dataset.value;
  for (const button of buttons) {
    button.onclick = () => {
      const column = Number(button.dataset.column);
      const numeric = !button.closest("th").classList.contains("text");
      const held = row => (numeric && text(row, column) !== "" ? Number(text(row, column)) : text(row, column));
      const head = button.parentElement;
      const up = head.ariaSort === null ? !numeric : head.ariaSort === "descending";
      body.append(...[...body.rows].sort((a, b) => order(held(a), held(b), up)));
      for (const other of buttons) other.parentElement.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
    };
  }
}

// Mol* in an element. It asks a model for its values and is told when they change; `show` takes the nodes below the
// root of a MolViewSpec scene.
function molstarViewer(element, packedScript) {
  const model = {
    values: {
      width: "100%", height: "100%", msvj_data: "",
      viewer_options: {
        layoutIsExpanded: false, layoutShowControls: false, layoutShowRemoteState: false, layoutShowLog: false,
        layoutShowSequence: true, viewportShowExpand: true, viewportShowSelectionMode: false, viewportShowAnimation: false,
        pluginStateServer: "", volumeStreamingServer: "", volumeStreamingDisabled: true, extensions: ["mvs"],
      },
      mvs_load_options: { replaceExisting: true, sanityChecks: false },
    },
    listeners: {},
    get(key) { return this.values[key]; },
    on(event, listener) { this.listeners[event] = listener; },
    set(key, value) {
      this.values[key] = value;
      try { this.listeners[`change:${key}`]?.(); } catch { /* Not yet drawn: the first drawing takes the value. */ }
    },
  };
  let started = false;
  return {
    async show(nodes, { keepCamera = false } = {}) {
      model.values.mvs_load_options.keepCamera = keepCamera;
      model.set("msvj_data", JSON.stringify({
        metadata: { version: "1", timestamp: "1970-01-01T00:00:00Z" },
        root: { kind: "root", children: [...nodes, { kind: "canvas", params: { background_color: "#ffffff" } }] },
      }));
      if (started) return;
      started = true;
      try {
        const script = await unpack(packedScript);
        const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
        const { default: widget } = await import(url);
        widget.render({ model, el: element });
        element.firstElementChild.style.height = "100%";
      } catch (error) {
        element.textContent = `The 3D viewer could not start in this browser: ${error}`;
      }
    },
  };
}

// Paper cannot be clicked.
addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });
