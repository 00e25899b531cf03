// LibreChat: npm @librechat/agents@latest
// note: the package of its agents: titles, a chain of agents, a handoff
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url); // its ES modules do not load everywhere
const { GraphEvents, ModelEndHandler, Providers, Run, TitleMethod, createContentAggregator, formatAgentMessages } =
  require("@librechat/agents");
const { getBufferString } = require("@langchain/core/messages");
const scene = process.env;
const provider = Providers.OPENAI;
const configuration = { baseURL: scene.URL, defaultHeaders: { "x-mnemogate-user": scene.WHO } };
const clientOptions = { model: scene.MODEL, apiKey: scene.KEY, streaming: true, configuration };
const PARTS = ["ON_RUN_STEP", "ON_RUN_STEP_DELTA", "ON_RUN_STEP_COMPLETED", "ON_MESSAGE_DELTA"].map((name) => GraphEvents[name]);
// It counts tokens with a table from the internet.
const fetchAny = globalThis.fetch;
globalThis.fetch = (url, ...more) =>
  String(url?.url ?? url).includes("tiktoken")
    ? Promise.reject(Object.assign(new Error("no internet"), { status: 404 }))
    : fetchAny(url, ...more);

const agent = (agentId) => ({ agentId, provider, clientOptions, instructions: `Be kind. You are ${agentId}.` });
const alone = { type: "standard", agents: [agent("one")] };
const chain = {
  type: "multi-agent",
  agents: [agent("first"), agent("second")],
  edges: [{
    from: "first",
    to: "second",
    edgeType: "direct",
    excludeResults: true,
    prompt: (messages, start) => "Based on the following conversation and analysis from previous agents, please provide your " +
      `insights:\n\n${getBufferString(messages.slice(start))}\n\nPlease add your specific expertise and perspective to this discussion.`,
  }],
};
// Its name has to have "weather" in it, so that the model calls the tool that hands over.
const handoff = {
  type: "multi-agent",
  agents: [agent("front"), agent("weather")],
  edges: [{ from: "front", to: "weather", edgeType: "handoff", prompt: "What to do" }],
};

async function talk(graphConfig, ...texts) {
  const said = [];
  for (const text of texts) {
    said.push({ role: "user", content: text });
    const { contentParts, aggregateContent } = createContentAggregator();
    const customHandlers = { [GraphEvents.CHAT_MODEL_END]: new ModelEndHandler() };
    for (const event of PARTS) customHandlers[event] = { handle: (_, data) => aggregateContent({ event, data }) };
    const run = await Run.create({ runId: randomUUID(), graphConfig, customHandlers, returnContent: true, skipCleanup: true });
    const configurable = { user_id: scene.WHO, thread_id: randomUUID() };
    await run.processStream(formatAgentMessages(said), { runId: randomUUID(), configurable, streamMode: "values", version: "v2" });
    const content = contentParts.filter(Boolean);
    console.log(JSON.stringify(content));
    said.push({ role: "assistant", content });
    if (said.length === 2) {
      const titleMethod = TitleMethod.COMPLETION;
      const title = await run.generateTitle({ provider, inputText: text, contentParts: content, titleMethod, clientOptions });
      console.log(JSON.stringify(title));
    }
  }
}

await talk(alone, scene.SAY, scene.MORE);
await talk(alone, scene.ASK);
await talk(chain, scene.STREAM, "And another one.");
await talk(handoff, scene.TOOL);
