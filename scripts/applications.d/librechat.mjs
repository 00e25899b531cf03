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
// The package loads a table for its counts of tokens from the internet.
const originalFetch = globalThis.fetch;
globalThis.fetch = (url, ...more) =>
  String(url?.url ?? url).includes("tiktoken")
    ? Promise.reject(Object.assign(new Error("no internet"), { status: 404 }))
    : originalFetch(url, ...more);

const agent = (agentId) => ({ agentId, provider, clientOptions, instructions: `Be kind. You are ${agentId}.` });
const single = { type: "standard", agents: [agent("one")] };
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
// The upstream of the test calls a tool with "weather" in its name: here the one that hands over to this agent.
const handoff = {
  type: "multi-agent",
  agents: [agent("front"), agent("weather")],
  edges: [{ from: "front", to: "weather", edgeType: "handoff", prompt: "What to do" }],
};

async function talk(graphConfig, ...texts) {
  const messages = [];
  for (const text of texts) {
    messages.push({ role: "user", content: text });
    const { contentParts, aggregateContent } = createContentAggregator();
    const customHandlers = { [GraphEvents.CHAT_MODEL_END]: new ModelEndHandler() };
    for (const event of PARTS) customHandlers[event] = { handle: (_, data) => aggregateContent({ event, data }) };
    const run = await Run.create({ runId: randomUUID(), graphConfig, customHandlers, returnContent: true, skipCleanup: true });
    const configurable = { user_id: scene.WHO, thread_id: randomUUID() };
    await run.processStream(formatAgentMessages(messages), { runId: randomUUID(), configurable, streamMode: "values", version: "v2" });
    const content = contentParts.filter(Boolean);
    console.log(JSON.stringify(content));
    messages.push({ role: "assistant", content });
    if (messages.length === 2) {
      const titleMethod = TitleMethod.COMPLETION;
      const title = await run.generateTitle({ provider, inputText: text, contentParts: content, titleMethod, clientOptions });
      console.log(JSON.stringify(title));
    }
  }
}

await talk(single, scene.SAY, scene.MORE);
await talk(single, scene.ASK);
await talk(chain, scene.STREAM, "And another one.");
await talk(handoff, scene.TOOL);
