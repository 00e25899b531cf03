# Pipecat: pip pipecat-ai[openai]
import asyncio
from os import environ as scene

from pipecat.frames.frames import LLMFullResponseEndFrame, LLMRunFrame, LLMTextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.llm import OpenAILLMService


class Ends(FrameProcessor):
    """Prints each reply, and then that it has ended."""

    def __init__(self):
        super().__init__()
        self.said, self.ended = "", asyncio.Event()

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMTextFrame):
            self.said += frame.text
        await self.push_frame(frame, direction)
        if isinstance(frame, LLMFullResponseEndFrame):
            print(self.said)
            self.said = ""
            self.ended.set()


async def talk(*texts):
    """Has a pipeline answer texts of one conversation, and prints the answers."""
    llm = OpenAILLMService(
        base_url=scene["URL"],
        api_key=scene["KEY"],
        default_headers={"x-mnemogate-user": scene["WHO"]},
        settings=OpenAILLMService.Settings(model=scene["MODEL"]),
    )
    context, ends = LLMContext([{"role": "system", "content": "Be kind."}]), Ends()
    pair = LLMContextAggregatorPair(context)
    task = PipelineTask(Pipeline([pair.user(), llm, ends, pair.assistant()]))
    running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))
    for text in texts:
        context.add_message({"role": "user", "content": text})
        ends.ended.clear()
        await task.queue_frames([LLMRunFrame()])
        await ends.ended.wait()
        await asyncio.sleep(0.5)  # until the reply is in the context
    await task.cancel()
    await running


async def main():
    await talk(scene["SAY"], scene["MORE"])
    await talk(scene["ASK"])


asyncio.run(main())
