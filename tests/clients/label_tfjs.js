// node label_tfjs.js FOLDER SHAPE: runs a model of the TensorFlow.js converter on images.f32, the bytes of
// float32 SHAPE (as in 10,224,224,3), and prints the probabilities as JSON.
const fs = require("fs");
const tf = require("@tensorflow/tfjs");

const [folder, shape] = process.argv.slice(2);
const described = JSON.parse(fs.readFileSync(`${folder}/model.json`));
const weightSpecs = described.weightsManifest.flatMap((group) => group.weights);
const files = described.weightsManifest.flatMap((group) => group.paths);
const content = Buffer.concat(files.map((file) => fs.readFileSync(`${folder}/${file}`)));
const weightData = new Uint8Array(content).buffer;
const { modelTopology, signature } = described;
const artifacts = { modelTopology, signature, weightSpecs, weightData };

async function main() {
  await tf.setBackend("cpu");
  const model = await tf.loadGraphModel({ load: async () => artifacts });
  const pixels = new Float32Array(new Uint8Array(fs.readFileSync(`${folder}/images.f32`)).buffer);
  const images = tf.tensor(pixels, shape.split(",").map(Number));
  console.log(JSON.stringify(await model.predict(images).array()));
}

main();
