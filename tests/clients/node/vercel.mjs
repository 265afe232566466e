// Vercel's client: text, streams, objects, tools.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, jsonSchema, Output, streamText, tool } from 'ai'
import { z } from 'zod'

import { report } from './pool.mjs'

const pool = createOpenAICompatible({
  name: 'pool',
  baseURL: process.env.POOL_BASE_URL,
  apiKey: 'sk-of-every-client-library-in-the-tests',
  supportsStructuredOutputs: true,
  transformRequestBody: (body) => ({ ...body, chat_template_kwargs: { enable_thinking: false } }),
})
const asked = {
  model: pool.chatModel(process.env.POOL_MODEL),
  prompt: 'tell me about the sea',
  temperature: 1,
  seed: 5,
  maxOutputTokens: 400,
  maxRetries: 0,
}
const plain = { ...asked, temperature: 0, maxOutputTokens: 24 }
const text = await generateText(plain)
const streamed = streamText(plain)

const sea = z.object({
  name: z.string().max(10),
  waves: z.array(z.enum(['round', 'flat'])).max(3),
  salty: z.boolean(),
})
const output = Output.object({ schema: sea })
const made = await generateText({ ...asked, output })
const parts = streamText({ ...asked, output })
let last
for await (const part of parts.partialOutputStream) last = part

const weather = tool({ description: 'weather', inputSchema: z.object({ city: z.enum(['Oslo', 'Rome']) }) })
const calling = {
  ...asked,
  tools: { weather },
  toolChoice: 'required',
  providerOptions: { pool: { parallel_tool_calls: false } },
}
const shown = (calls) => calls.map(({ toolName, input }) => ({ name: toolName, input }))
const called = await generateText(calling)
const calls = await streamText(calling).toolCalls

const broken = Output.object({ schema: jsonSchema({ type: 'object', properties: { a: { type: 'nothing' } } }) })
const refused = await generateText({ ...asked, output: broken }).then(
  () => null,
  (error) => ({ status: error.statusCode, param: error.data?.error?.param }),
)

report({
  text: text.text,
  finish: text.finishReason,
  streamed: await streamed.text,
  object: made.output,
  parts: last,
  calls: shown(called.toolCalls),
  streamed_calls: shown(calls),
  refused,
})
