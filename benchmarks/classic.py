"""The classic way, plainly: what image_retraining/retrain.py and label_image.py did, for timing.

`extract GRAPH FOLDER PHOTO...`, `train FOLDER STEPS PHOTOS`, `label GRAPH PHOTO`: each prints JSON.
"""

import json
import os
import random
import sys
import time

import bench
import numpy as np

CLASSES, BATCH, EVERY = 5, 100, 10


def load(tf, path):
    graph_def = tf.compat.v1.GraphDef()
    with open(path, "rb") as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    return tf.compat.v1.Session(graph=graph)


def extract(graph, folder, *photos):
    """Vectors one at a time, a text file each; the first, while TensorFlow warms up, apart."""
    started = time.perf_counter()
    import tensorflow as tf

    session = load(tf, graph)
    start, times = time.perf_counter() - started, []
    began = time.perf_counter()
    with open(os.path.join(folder, "classic.pb"), "wb") as file:
        file.write(session.graph.as_graph_def().SerializeToString())
    export = time.perf_counter() - began
    for number, photo in enumerate(photos):
        began = time.perf_counter()
        with open(photo, "rb") as file:
            feed = {"DecodeJpeg/contents:0": file.read()}
        vector = np.squeeze(session.run("pool_3/_reshape:0", feed))
        with open(os.path.join(folder, f"{number}.txt"), "w") as file:
            file.write(",".join(str(value) for value in vector))
        times.append(time.perf_counter() - began)
    rate = (len(times) - 1) / sum(times[1:])
    return {"rate": rate, "start": start, "export": export, "memory": bench.peak_memory()}


def read_vector(folder, count):
    """One vector's text file, as every batch read it anew."""
    with open(os.path.join(folder, f"{random.randrange(count)}.txt")) as file:
        return [float(word) for word in file.read().split(",")]


def summarize(v1, variable):
    """The classic's `variable_summaries`."""
    mean = v1.reduce_mean(variable)
    v1.summary.scalar("mean", mean)
    v1.summary.scalar("stddev", v1.sqrt(v1.reduce_mean(v1.square(variable - mean))))
    v1.summary.scalar("max", v1.reduce_max(variable))
    v1.summary.scalar("min", v1.reduce_min(variable))
    v1.summary.histogram("histogram", variable)


def train(folder, steps, photos):
    """Seconds per step, with the classic's summaries, and its evaluations every 10 steps.

    `read` are the seconds to read as many vectors as there are photos.
    """
    import tensorflow as tf

    v1, count = tf.compat.v1, len([n for n in os.listdir(folder) if n.endswith(".txt")])
    width = len(read_vector(folder, count))
    with tf.Graph().as_default():
        vectors = v1.placeholder(tf.float32, [None, width])
        targets = v1.placeholder(tf.int64, [None])
        weights = v1.Variable(tf.random.truncated_normal([width, CLASSES], stddev=0.001))
        bias = v1.Variable(tf.zeros([CLASSES]))
        logits = tf.matmul(vectors, weights) + bias
        loss = v1.losses.sparse_softmax_cross_entropy(targets, logits)
        step = v1.train.GradientDescentOptimizer(0.01).minimize(loss)
        for variable in (weights, bias):
            summarize(v1, variable)
        v1.summary.histogram("pre_activations", logits)
        v1.summary.histogram("activations", tf.nn.softmax(logits))
        v1.summary.scalar("cross_entropy", loss)
        right = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), targets), tf.float32))
        v1.summary.scalar("accuracy", right)
        merged = v1.summary.merge_all()
        writer = v1.summary.FileWriter(os.path.join(folder, "classic_logs"), v1.get_default_graph())
        session = v1.Session()
        session.run(v1.global_variables_initializer())

    def batch():
        rows = [read_vector(folder, count) for _ in range(BATCH)]
        return {vectors: rows, targets: np.random.randint(CLASSES, size=BATCH)}

    session.run([merged, step], batch())
    started = time.perf_counter()
    for number in range(int(steps)):
        feed = batch()
        summary, _ = session.run([merged, step], feed)
        writer.add_summary(summary, number)
        if number % EVERY == 0:
            session.run([right, loss], feed)
            summary, _ = session.run([merged, right], batch())
            writer.add_summary(summary, number)
    per_step = (time.perf_counter() - started) / int(steps)
    started = time.perf_counter()
    for _ in range(int(photos)):
        read_vector(folder, count)
    return {"step": per_step, "read": time.perf_counter() - started}


def label(graph, photo):
    import tensorflow as tf

    session = load(tf, graph)
    with open(photo, "rb") as file:
        answer = session.run("final_result:0", {"DecodeJpeg/contents:0": file.read()})
    return {"best": int(answer.argmax())}


if __name__ == "__main__":
    actions = {"extract": extract, "train": train, "label": label}
    print(json.dumps(actions[sys.argv[1]](*sys.argv[2:])))
