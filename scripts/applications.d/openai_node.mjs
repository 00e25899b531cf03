// openai-node: npm openai zod
import OpenAI from "openai";

const { URL: baseURL, KEY: apiKey, MODEL: model, WHO: user, SAY, MORE, ASK, STREAM, TOOL } = process.env;
const client = new OpenAI({ baseURL, apiKey });
const said = [];
for (const text of [SAY, MORE]) {
  said.push({ role: "user", content: text });
  const reply = await client.chat.completions.create({ model, user, messages: said });
  said.push(reply.choices[0].message);
  console.log(reply.choices[0].message.content);
}
const ask = (content) => ({ model, user, messages: [{ role: "user", content }] });
console.log((await client.chat.completions.create(ask(ASK))).choices[0].message.content);
console.log(await client.chat.completions.stream(ask(STREAM)).finalContent());
const runner = client.chat.completions.runTools({
  ...ask(TOOL),
  tools: [
    {
      type: "function",
      function: {
        name: "get_weather",
        function: ({ city }) => `Rain in ${city}.`,
        parse: JSON.parse,
        description: "The weather in a city.",
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
      },
    },
  ],
});
console.log(await runner.finalContent());
