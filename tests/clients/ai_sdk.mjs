// The AI SDK's provider for Anthropic, as its documentation has it: whole, streamed, with a tool and with a schema.
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const { URL: baseURL, MODEL, CAT, ASKED } = process.env;
const headers = { "x-mnemogate-user": "alice" };
const model = createAnthropic({ baseURL, apiKey: "sk-ant", headers })(MODEL);
const weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `Rain in ${city}.`,
});
const city = Output.object({ schema: z.object({ name: z.string(), people: z.number() }) });
const said = [
  (await generateText({ model, prompt: CAT })).text,
  await streamText({ model, prompt: ASKED }).text,
  (await generateText({ model, prompt: "How is it in Oslo?", tools: { weather }, stopWhen: stepCountIs(3) })).text,
  (await generateText({ model, prompt: "Oslo?", output: city })).output,
];
console.log(JSON.stringify(said));
