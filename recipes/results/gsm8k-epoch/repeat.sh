# From the repository's root, with the data in a folder named gsm8k. Finished runs are not made again: in a copy of this folder
# it only writes the page; in an empty one it makes the runs. On a GPU add --jobs 10, and see the README on sharing one.
tools/keras-mtp study gsm8k --arms recipes/results/gsm8k-epoch/arms.toml --seeds 3 --data gsm8k --run recipes/results/gsm8k-epoch \
  --backend torch --set training.compile=false --set evaluation.test_limit=0 --set data.max_tokens=256 --set evaluation.limit=512 \
  --set evaluation.every=98 --set evaluation.batch_size=128 \
  --set training.batch_size=16 --set training.steps=392 --set heads.warmup_steps=80
