"""The official OpenAI client, and curl in TensorFlow Serving's shape, asked beside each other: do they get the model's tokens?"""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai

from tools.saved_models.systems import Client as InProcess
from tools.stress.served import Served

AT_A_TIME = (1, 8, 32)
LONG = 48  # tokens of an answer
QUESTIONS = [
    f"{name} has {n} {things} and buys {2 * n + 1} more. How many {things} has {name} now?"
    for n, name in enumerate(("Tom", "Ann", "Joe", "Eva"), start=2)
    for things in ("apples", "books", "pens", "eggs", "cards", "stamps", "shells", "coins")
]


async def clients(folder: Path) -> dict[str, Any]:
    """Every question by 1, 8 and 32 clients, in both shapes: what differs from `generate` of the SavedModel in this process."""
    model = InProcess(folder)
    prompts = [model.encoded(question) for question in QUESTIONS]
    tokens = [model.answers([prompt], LONG)[0] for prompt in prompts]
    texts = [model.tokenizer.decode(answer) for answer in tokens]
    served = Served(folder)
    await served.ready()
    name = (await served.client.get("/v1/models")).json()["data"][0]["id"]
    official = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)

    async def complete(place: int) -> bool:
        said = await official.completions.create(
            model=name, prompt=prompts[place], max_tokens=LONG, temperature=0
        )
        return said.choices[0].text != texts[place]

    async def chat(place: int) -> bool:
        turns: Any = [{"role": "user", "content": QUESTIONS[place]}]
        said = await official.chat.completions.create(
            model=name, messages=turns, max_tokens=LONG, temperature=0
        )
        return said.choices[0].message.content != texts[place]

    async def curl(place: int) -> bool:
        inputs = {
            "token_ids": [prompts[place]],
            "lengths": [len(prompts[place])],
            "max_new_tokens": LONG,
            "stop_ids": model.stop_ids,
        }
        body = json.dumps({"signature_name": "generate", "inputs": inputs})
        address = f"{served.url}/v1/models/{name}:predict"
        process = await asyncio.create_subprocess_exec(
            "curl", "--silent", "--data", body, address, stdout=asyncio.subprocess.PIPE
        )
        said = json.loads((await process.communicate())[0])["outputs"]
        return said["tokens"][0][: said["lengths"][0]] != tokens[place]

    differ = {}
    for count in AT_A_TIME:
        places = asyncio.Semaphore(count)
        for ask in (complete, chat, curl):

            async def one(place: int, ask: Any = ask, places: asyncio.Semaphore = places) -> bool:
                async with places:
                    return await ask(place)

            differ[f"{ask.__name__} by {count}"] = sum(await asyncio.gather(*map(one, range(len(prompts)))))
    served.end()
    return {
        "questions": len(prompts),
        "tokens": sum(map(len, tokens)),
        "differ": differ,
        "holds": not any(differ.values()),
    }
