# From the repository's root, with the data in a folder named instruct. Finished runs are not made again: in a copy of this folder
# it only writes the page; in an empty one it makes the runs. On a GPU add --jobs 10, and see the README on sharing one.
tools/keras-mtp study instruct --arms recipes/results/instruct/arms.toml --seeds 3 --data instruct --run recipes/results/instruct \
  --backend torch --set training.compile=false --set evaluation.test_limit=0 --set evaluation.limit=256 \
  --set evaluation.every=25 \
  --set training.batch_size=16 --set training.steps=100 --set heads.warmup_steps=80
