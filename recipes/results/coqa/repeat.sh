# From the repository's root, with the data in a folder named coqa. Finished runs are not made again: in a copy of this folder
# it only writes the page; in an empty one it makes the runs. On a GPU add --jobs 10, and see the README on sharing one.
tools/keras-mtp study coqa --arms recipes/results/coqa/arms.toml --seeds 3 --data coqa --run recipes/results/coqa \
  --backend torch --set training.compile=false --set evaluation.test_limit=0 --set evaluation.limit=20 \
  --set evaluation.every=20 --set training.steps=60 --set heads.warmup_steps=80
