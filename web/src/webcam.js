/** The webcam as a stream of pictures. */

/**
 * Opens the camera and plays it into `video`; returns a function that ends it. `onEnd` is called
 * if the camera goes away by itself. Throws an Error with one clear line.
 */
export async function openWebcam(video, onEnd) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("The webcam needs a secure page: open this one at https or localhost.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "user", width: { ideal: 1280 }, height: { ideal: 720 } },
      audio: false,
    });
  } catch (error) {
    throw new Error(REASONS[error.name] ?? `The webcam could not be opened: ${error.message}`);
  }
  video.srcObject = stream;
  const close = () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
  for (const track of stream.getTracks()) track.addEventListener("ended", onEnd);
  try {
    await video.play();
  } catch (error) {
    close();
    throw new Error(`The webcam could not be shown: ${error.message}`);
  }
  return close;
}

const REASONS = {
  NotAllowedError: "The webcam was refused; allow it in the browser's address bar and try again.",
  NotFoundError: "No webcam was found; plug one in and try again.",
  NotReadableError: "The webcam is in use by another program; close that one and try again.",
};
