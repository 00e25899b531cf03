// Vercel AI SDK (Anthropic): npm ai @ai-sdk/anthropic zod
// api: messages
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const { URL: baseURL, KEY: apiKey, SAY, MORE, ASK, STREAM, TOOL } = process.env;
const headers = { "x-mnemogate-user": process.env.WHO };
const model = createAnthropic({ baseURL, apiKey, headers })(process.env.MODEL);
const messages = [];
for (const content of [SAY, MORE]) {
  messages.push({ role: "user", content });
  const { text, response } = await generateText({ model, messages });
  messages.push(...response.messages);
  console.log(text);
}
console.log((await generateText({ model, prompt: ASK })).text);
console.log(await streamText({ model, prompt: STREAM }).text);
const get_weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `Rain in ${city}.`,
});
console.log((await generateText({ model, prompt: TOOL, tools: { get_weather }, stopWhen: stepCountIs(3) })).text);
