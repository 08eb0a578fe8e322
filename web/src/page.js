/** The page: pictures come in from five sides, faces are drawn, results are saved. */
import { Detector } from "./detector.js";
import { drawFaces, drawNote } from "./drawing.js";
import { selectFaces, toReport } from "./faces.js";
import { openWebcam } from "./webcam.js";

const MAX_PIXELS = 64e6; // of a photo; its pixels then take 256 MB
const MAX_ENLARGEMENT = 3; // of small photos on the screen

const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const stage = element("stage");
const video = element("video");
const detector = new Detector();

/** What is on the stage: { picture: ImageBitmap, name, found: the detector's answer or null }. */
let shown = null;
let closeWebcam = null;
let framesPerSecond = 0;
let looking = false;
let lookAgain = false;
let errorOfLook = false;

// Pictures in -----------------------------------------------------------------------------------

async function openFile(file) {
  stopWebcam();
  let picture;
  try {
    picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    showError(`${file.name || "This"} is not a picture that this browser can open; give a JPEG, PNG or WebP.`);
    return;
  }
  openPicture(picture, file.name || "picture");
}

function openPicture(picture, name) {
  if (picture.width * picture.height > MAX_PIXELS) {
    showError(`${name} has ${picture.width}×${picture.height} pixels, too many; shrink it first.`);
    picture.close();
    return;
  }
  stopWebcam();
  showError("");
  put({ picture, name, found: null });
  look();
}

async function openExample() {
  const image = element("example-picture");
  try {
    await image.decode();
    openPicture(await createImageBitmap(image), "example.jpg");
  } catch {
    showError("The example could not be loaded; reload the page.");
  }
}

async function pasteFromClipboard() {
  try {
    for (const item of await navigator.clipboard.read()) {
      const type = item.types.find((one) => one.startsWith("image/"));
      if (type) {
        await openFile(new File([await item.getType(type)], "pasted", { type }));
        return;
      }
    }
    showError("The clipboard holds no picture; copy one first.");
  } catch {
    showError("The browser keeps the clipboard closed to buttons; press Ctrl+V or ⌘V here.");
  }
}

function openFirst(files, otherwise) {
  if (files?.length) openFile(files[0]);
  else showError(otherwise);
}

// Detection -------------------------------------------------------------------------------------

function longSide() {
  const { value } = document.querySelector("input[name=size]:checked");
  return value === "original" ? null : Number(value);
}

/** Run the network on the photo shown. Asked while it runs, it runs once more at the end. */
async function look() {
  lookAgain = looking;
  if (looking || !shown || closeWebcam) return;
  looking = true;
  const asked = shown;
  element("save-picture").disabled = element("save-json").disabled = true;
  stage.setAttribute("aria-busy", "true");
  say("Looking for faces…");
  try {
    const copy = await createImageBitmap(asked.picture);
    const found = await detector.detect(copy, longSide());
    found.bitmap.close();
    if (asked === shown) {
      asked.found = found;
      if (errorOfLook) showError("");
    }
  } catch (error) {
    if (asked === shown) {
      asked.found = null;
      showError(error.message);
      errorOfLook = true;
    }
  }
  looking = false;
  stage.removeAttribute("aria-busy");
  if (lookAgain) look();
  else render();
}

async function startWebcam() {
  showError("");
  element("webcam").disabled = true;
  try {
    await detector.ready;
    closeWebcam = await openWebcam(video, () => {
      stopWebcam();
      showError("The webcam was taken away.");
    });
  } catch (error) {
    showError(error.message);
    return;
  } finally {
    element("webcam").disabled = false;
  }
  element("webcam").textContent = "Stop webcam";
  element("webcam").setAttribute("aria-pressed", "true");
  watch(closeWebcam);
}

/** Each frame is drawn with the faces found in it. The last one stays when the webcam stops. */
async function watch(watched) {
  let before = performance.now();
  framesPerSecond = 0;
  while (closeWebcam === watched) {
    try {
      const found = await detector.detect(await createImageBitmap(video), longSide());
      if (closeWebcam !== watched) {
        found.bitmap.close();
        return;
      }
      const now = performance.now();
      const rate = 1000 / (now - before);
      before = now;
      framesPerSecond = framesPerSecond ? 0.85 * framesPerSecond + 0.15 * rate : rate;
      put({ picture: found.bitmap, name: "webcam", found });
    } catch (error) {
      stopWebcam();
      showError(error.message);
      return;
    }
    await new Promise(requestAnimationFrame);
  }
}

function stopWebcam() {
  if (!closeWebcam) return;
  closeWebcam();
  closeWebcam = null;
  element("webcam").textContent = "Webcam";
  element("webcam").setAttribute("aria-pressed", "false");
  render();
}

// On the screen ---------------------------------------------------------------------------------

function put(next) {
  shown?.picture.close();
  shown = next;
  element("empty").hidden = true;
  element("again").hidden = false;
  canvas.hidden = false;
  render();
}

function threshold() {
  return element("threshold").valueAsNumber;
}

function facesShown() {
  const { found } = shown;
  return found ? selectFaces(found.candidates, threshold(), found.width, found.height) : [];
}

/** Draw what is shown and say what was found; the network does not run. */
function render() {
  if (!shown) return;
  const { picture, found } = shown;
  const faces = facesShown();
  const pixelRatio = window.devicePixelRatio || 1;
  const room = { width: stage.clientWidth, height: Math.max(320, 0.76 * window.innerHeight) };
  const scale = Math.min(room.width / picture.width, room.height / picture.height, MAX_ENLARGEMENT);
  const width = Math.max(1, Math.round(picture.width * scale));
  const height = Math.max(1, Math.round(picture.height * scale));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * pixelRatio);
  canvas.height = Math.round(height * pixelRatio);
  const context = canvas.getContext("2d");
  drawFaces(context, picture, faces, picture.width, pixelRatio);
  if (!found) {
    canvas.setAttribute("aria-label", shown.name);
    if (!looking) say("");
    return;
  }
  const count = faces.length === 1 ? "1 face" : `${faces.length} faces`;
  const time = `${Math.round(found.milliseconds)} ms`;
  const rate = closeWebcam ? `${framesPerSecond.toFixed(1)} frames per second` : "";
  const short = closeWebcam ? `${framesPerSecond.toFixed(1)} fps` : "";
  drawNote(context, [count, time, short].filter(Boolean).join(" · "), pixelRatio);
  canvas.setAttribute("aria-label", `${shown.name} with ${count} marked`);
  const seen = `seen at ${found.network.join("×")}`;
  const size = `${found.width}×${found.height} pixels`;
  if (!looking) say([time, rate, size, seen].filter(Boolean).join(" · "), count);
  if (element("count").textContent !== `${count} found`) {
    element("count").textContent = `${count} found`;
  }
  element("save-picture").disabled = element("save-json").disabled = looking;
}

function say(text, strong = "") {
  const parts = strong ? [Object.assign(document.createElement("b"), { textContent: strong })] : [];
  element("summary").replaceChildren(...parts, strong && text ? ` · ${text}` : text);
}

function showError(message) {
  errorOfLook = false;
  element("error").hidden = !message;
  element("error").textContent = message;
}

// Results out -----------------------------------------------------------------------------------

function save(blob, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${shown.name.replace(/\.[^.]*$/, "")}_faces.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function savePicture() {
  const { picture } = shown;
  const whole = document.createElement("canvas");
  whole.width = picture.width;
  whole.height = picture.height;
  const unit = Math.max(1, Math.max(picture.width, picture.height) / 900);
  drawFaces(whole.getContext("2d"), picture, facesShown(), picture.width, unit);
  whole.toBlob((blob) => {
    if (blob) save(blob, "png");
    else showError("The browser could not write a picture of this size.");
  }, "image/png");
}

function saveJson() {
  save(new Blob([JSON.stringify(toReport(facesShown()))], { type: "application/json" }), "json");
}

// Wiring ----------------------------------------------------------------------------------------

element("choose").addEventListener("click", () => element("file").click());
element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) openFile(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
element("example").addEventListener("click", openExample);
element("again").addEventListener("click", openExample);
element("paste").addEventListener("click", pasteFromClipboard);
element("webcam").addEventListener("click", () => (closeWebcam ? stopWebcam() : startWebcam()));
element("threshold").addEventListener("input", () => {
  element("threshold-value").textContent = threshold().toFixed(2);
  render();
});
for (const choice of document.querySelectorAll("input[name=size]")) {
  choice.addEventListener("change", look);
}
element("save-picture").addEventListener("click", savePicture);
element("save-json").addEventListener("click", saveJson);

document.addEventListener("paste", ({ clipboardData }) => {
  openFirst(clipboardData.files, "The clipboard holds no picture; copy one first.");
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  openFirst(event.dataTransfer.files, "No file was dropped; save the picture first, then drop it.");
});
new ResizeObserver(render).observe(stage);

detector.ready.then(
  () => shown || say("Ready."),
  (error) => {
    say("");
    showError(error.message);
  },
);
