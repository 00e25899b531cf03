// LlamaIndex (TypeScript): npm llamaindex @llamaindex/openai @llamaindex/workflow zod
import { OpenAI } from "@llamaindex/openai";
import { agent } from "@llamaindex/workflow";
import { SimpleChatEngine, tool } from "llamaindex";
import { z } from "zod";

const { URL: baseURL, KEY: apiKey, MODEL: model, SAY, MORE, ASK, STREAM, TOOL } = process.env;
const defaultHeaders = { "x-mnemogate-user": process.env.WHO };
const llm = new OpenAI({ model, apiKey, baseURL, additionalSessionOptions: { defaultHeaders } });
const engine = new SimpleChatEngine({ llm });
for (const message of [SAY, MORE]) console.log((await engine.chat({ message })).message.content);
console.log((await new SimpleChatEngine({ llm }).chat({ message: ASK })).message.content);
let streamed = "";
for await (const chunk of await llm.chat({ messages: [{ role: "user", content: STREAM }], stream: true }))
  streamed += chunk.delta;
console.log(streamed);
const get_weather = tool({
  name: "get_weather",
  description: "The weather in a city.",
  parameters: z.object({ city: z.string() }),
  execute: ({ city }) => `Rain in ${city}.`,
});
console.log((await agent({ tools: [get_weather], llm }).run(TOOL)).data.result);
