// Builds the page into featherface/serving/static, or the folder that is given: npm run build
import { build } from "esbuild";
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const web = dirname(fileURLToPath(import.meta.url));
const package_ = join(web, "..", "featherface");
const target = process.argv[2] ?? join(package_, "serving", "static");
const runtime = join(web, "node_modules", "onnxruntime-web", "dist");
const WASM = "ort-wasm-simd-threaded";

await rm(target, { recursive: true, force: true });
await mkdir(target, { recursive: true });
await build({
  absWorkingDir: web,
  entryPoints: ["src/page.js", "src/worker.js", "src/page.css"],
  outdir: target,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "inline",
  logLevel: "warning",
});
await copyFile(join(web, "src", "index.html"), join(target, "index.html"));
await copyFile(join(web, "src", "icon.svg"), join(target, "icon.svg"));
await copyFile(join(web, "licenses", "onnxruntime.txt"), join(target, "onnxruntime-license.txt"));
await copyFile(join(package_, "examples", "astronaut.jpg"), join(target, "example.jpg"));
await copyFile(join(runtime, `${WASM}.mjs`), join(target, `${WASM}.mjs`));
// Packed, because the repository and every install carry it; the server sends it as it is.
const packed = gzipSync(await readFile(join(runtime, `${WASM}.wasm`)), { level: 9 });
await writeFile(join(target, `${WASM}.wasm.gz`), packed);
