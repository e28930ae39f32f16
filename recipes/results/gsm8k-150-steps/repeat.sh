# From the repository's root, with GSM8K's train.jsonl and test.jsonl in a folder named gsm8k. Finished runs are not made again, so
# that in a copy of this folder it only writes the page; in an empty folder it makes the runs (minutes on a GPU).
tools/keras-mtp study gsm8k --arms recipes/results/gsm8k-150-steps/arms.toml --seeds 1 --backend torch --data gsm8k \
  --run recipes/results/gsm8k-150-steps --set training.compile=false --set data.max_tokens=256 --set evaluation.limit=512 \
  --set evaluation.test_limit=0 --set evaluation.every=50 --set evaluation.batch_size=64 --set training.steps=150 \
  --set heads.learning_rate=2e-4 # the recipe's own at that time
