// Vercel's client with an image: text, streams, objects by both of its ways, tools.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, streamObject, streamText, tool } from 'ai'
import { z } from 'zod'

import { report } from './pool.mjs'

const pool = createOpenAICompatible({
  name: 'pool',
  baseURL: process.env.POOL_BASE_URL,
  apiKey: 'none',
  supportsStructuredOutputs: true,
  transformRequestBody: (body) => ({ ...body, chat_template_kwargs: { enable_thinking: false } }),
})
const data = Buffer.from(process.env.POOL_IMAGE.split(',')[1], 'base64')
const asked = {
  model: pool.chatModel(process.env.POOL_MODEL),
  messages: [{ role: 'user', content: [{ type: 'text', text: 'what is this?' }, { type: 'image', image: data }] }],
  temperature: 1,
  seed: 5,
  maxOutputTokens: 400,
  maxRetries: 0,
}
const plain = { ...asked, temperature: 0, maxOutputTokens: 12 }
const text = await generateText(plain)
const blind = await generateText({ ...plain, messages: [{ role: 'user', content: 'what is this?' }] })

const thing = z.object({ name: z.string().max(10), round: z.boolean() })
const made = await generateObject({ ...asked, schema: thing })
const parts = streamObject({ ...asked, schema: thing })
let partial = 0
for await (const _ of parts.partialObjectStream) partial += 1

const note = tool({ description: 'note', inputSchema: z.object({ colour: z.enum(['red', 'blue']) }) })
const calling = {
  ...asked,
  tools: { note },
  toolChoice: { type: 'tool', toolName: 'note' },
}
const called = await generateText(calling)
const calls = await streamText(calling).toolCalls

report({
  text: text.text,
  streamed: await streamText(plain).text,
  tokens: [text.usage.inputTokens, blind.usage.inputTokens],
  made: made.object,
  parts: await parts.object,
  partial,
  called: called.toolCalls.map(({ input }) => input),
  calls: calls.map(({ input }) => input),
})
